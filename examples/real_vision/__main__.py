"""Adapting a real encoder: `python -m examples.real_vision rules`, `methods` and so on, then `report`."""

import argparse
from pathlib import Path

from examples.real_vision import compare_methods, compare_rules, costs, methods_report, rules_report, swap, unlabelled
from examples.real_vision.resuming import read

parser = argparse.ArgumentParser(prog="python -m examples.real_vision", description=__doc__)
parser.add_argument("what", choices=["rules", "methods", "unlabelled", "costs", "swap", "report"])
parser.add_argument("--data", type=Path, help="not for report: the folder with pacs128/ and efficientnet_lite0/")
parser.add_argument("--results", type=Path, default=Path("examples/real_vision/results"), help="a folder")
arguments = parser.parse_args()
what, root, folder = arguments.what, arguments.data, arguments.results
rules, methods, spent, adapted = (folder / f"{name}.json" for name in ("rules", "methods", "costs", "unlabelled"))
if what == "report":
    if rules.is_file():
        print(*rules_report.write_report(read(rules), folder), sep="\n")
    if spent.is_file():
        print(*methods_report.write_report(read(methods), read(spent), folder), sep="\n")
    if adapted.is_file():
        print(*unlabelled.write_report(read(adapted), folder), sep="\n")
elif root is None:
    parser.error(f"{what} needs --data ROOT")
elif what == "rules":
    compare_rules.compare(root, rules)
elif what == "methods":
    compare_methods.compare(root, methods)
elif what == "unlabelled":
    unlabelled.adapt(root, adapted)
elif not methods.is_file():
    parser.error(f"{what} takes the learning rates that methods chose: run it first")
elif what == "costs":
    costs.measure_all(root, methods, spent)
else:
    print(*swap.swap(root, methods, folder), sep="\n")

"""`python -m examples.real_vision rules --data ROOT` or `supports --data ROOT`, then `report`."""

import argparse
from pathlib import Path

from examples.real_vision import compare_rules, compare_supports, rules_report, supports_report
from examples.real_vision.resuming import read

parser = argparse.ArgumentParser(prog="python -m examples.real_vision", description=__doc__)
parser.add_argument("what", choices=["rules", "supports", "report"])
parser.add_argument(
    "--data", type=Path, help="for rules and supports: the folder with pacs128/ and efficientnet_lite0/"
)
parser.add_argument("--results", type=Path, default=Path("examples/real_vision/results"), help="a folder")
arguments = parser.parse_args()
rules, supports = arguments.results / "rules.json", arguments.results / "supports.json"
if arguments.what == "report":
    print(*rules_report.write_report(read(rules), arguments.results), sep="\n")
    if supports.is_file():
        print(*supports_report.write_report(read(supports), read(rules), arguments.results), sep="\n")
elif arguments.data is None:
    parser.error(f"{arguments.what} needs --data ROOT")
elif arguments.what == "rules":
    compare_rules.compare(arguments.data, rules)
else:
    compare_supports.compare(arguments.data, supports)

"""`python -m examples.real_vision rules --data ROOT`, then `report`."""

import argparse
from pathlib import Path

from examples.real_vision.compare_rules import compare, read
from examples.real_vision.rules_report import write_report

parser = argparse.ArgumentParser(prog="python -m examples.real_vision", description=__doc__)
parser.add_argument("what", choices=["rules", "report"])
parser.add_argument("--data", type=Path, help="for rules: the folder with pacs128/ and efficientnet_lite0/")
parser.add_argument("--results", type=Path, default=Path("examples/real_vision/results/rules.json"))
arguments = parser.parse_args()
if arguments.what == "rules":
    if arguments.data is None:
        parser.error("rules needs --data ROOT")
    compare(arguments.data, arguments.results)
else:
    print(*write_report(read(arguments.results), arguments.results.parent), sep="\n")

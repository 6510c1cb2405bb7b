"""`python -m examples.real_vision rules --data ROOT`."""

import argparse
from pathlib import Path

from examples.real_vision.compare_rules import compare

parser = argparse.ArgumentParser(prog="python -m examples.real_vision", description=__doc__)
parser.add_argument("what", choices=["rules"])
parser.add_argument("--data", type=Path, required=True, help="the folder with pacs128/ and efficientnet_lite0/")
parser.add_argument("--results", type=Path, default=Path("examples/real_vision/results/rules.json"))
arguments = parser.parse_args()
compare(arguments.data, arguments.results)

"""`python -m examples.real_language compare`, then `use` and `report`."""

import argparse
from pathlib import Path

from examples.real_language.comparison import compare, read
from examples.real_language.report import write_report
from examples.real_language.training_run import TASKS
from examples.real_language.use_delta import use

parser = argparse.ArgumentParser(prog="python -m examples.real_language", description=__doc__)
parser.add_argument("what", choices=["compare", "use", "report"])
parser.add_argument("--model", choices=TASKS, action="append", help="one model alone (default: both)")
parser.add_argument("--outputs", type=Path, default=Path("outputs/real_language"), help="models, adapters and deltas")
parser.add_argument("--results", type=Path, default=Path("examples/real_language/results/language.json"))
arguments = parser.parse_args()
tasks = [TASKS[name] for name in arguments.model or TASKS]
for task in tasks:
    if arguments.what == "compare":
        compare(task, arguments.outputs, arguments.results)
    elif arguments.what == "use":
        print(*use(task, arguments.outputs), sep="\n", flush=True)
if arguments.what == "report":
    print(*write_report(list(TASKS.values()), read(arguments.results), arguments.results.parent), sep="\n")

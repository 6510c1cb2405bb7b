"""`python -m examples.peft_comparison`: the counts, the runs, the report."""

from examples.peft_comparison.cli import main

main()

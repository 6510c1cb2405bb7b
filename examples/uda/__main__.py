"""`python -m examples.uda`: reproduce the paper's classification tables."""

from examples.uda.cli import main

main()

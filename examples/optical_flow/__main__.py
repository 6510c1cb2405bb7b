"""`python -m examples.optical_flow`: reproduce appendix Table X."""

from examples.optical_flow.cli import main

main()

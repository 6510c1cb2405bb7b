"""`python -m examples.segmentation`."""

from examples.segmentation.cli import main

main()

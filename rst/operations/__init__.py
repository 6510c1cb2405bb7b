"""What is done with deltas and checkpoints: export, merge, convert, combine, compare."""

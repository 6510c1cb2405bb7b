"""Operations on deltas and checkpoints: export, merge, convert, combine, compare."""

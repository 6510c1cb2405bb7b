"""Hostile files for every reader: `python -m tests.fuzz` runs long, `test_fuzz.py` a short part, always the same."""

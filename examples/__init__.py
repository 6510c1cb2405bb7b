"""Runnable examples of `rst` and `cmkd`; each is `python -m examples.<name>`."""

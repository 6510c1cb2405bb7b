"""The error for a benchmark's missing or wrong files, with shortened lists of names."""

from collections.abc import Sequence

SHOWN = 5


class DatasetError(Exception):
    """A benchmark's files are missing or not the expected ones; says what was found and what to download."""


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are: "a, b, c, d, e and 3 more"."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) or "nothing") + more

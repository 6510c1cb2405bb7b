"""Limits on the cost of reading an untrusted file: as many objects and as much memory as its size explains."""

_FREE_STEPS, _STEPS_A_BYTE = 1 << 24, 16
_FREE_RECORDS, _BYTES_A_RECORD = 1 << 12, 16
_FREE_ENTRIES, _ENTRIES_A_BYTE = 1 << 20, 16
_FREE_TEXT, _TEXT_A_BYTE, _MOST_TEXT = 1 << 16, 64, 1 << 27
_FREE_DENSE, _DENSE_A_BYTE = 1 << 28, 1024

DEEPEST = 64
"""Most levels of settings, which recursive functions save again."""
MOST_SETTINGS = 1 << 20
"""Most values in settings, each counted as often as it is reached: saving writes shared values out."""


class Budget:
    """The cost that a file of a given size may cause its reader. A writer that would exceed it packs less.

    Attributes:
        steps: steps of scanning a pickle's objects, some tens of nanoseconds each.
        records: individually described things, such as parameters; a thousand bytes of memory each.
        entries: numbers unpacked from compressed streams, of all streams together.
        text: bytes of text that a compressed part expands to.
        dense: bytes of tensors whose shapes only the file states.
    """

    def __init__(self, file_bytes: int) -> None:
        """Set the limits that `file_bytes` allow."""
        self.file_bytes = file_bytes
        self.steps = _FREE_STEPS + _STEPS_A_BYTE * file_bytes
        self.records = _FREE_RECORDS + file_bytes // _BYTES_A_RECORD
        self.entries = _FREE_ENTRIES + _ENTRIES_A_BYTE * file_bytes
        self.text = min(_MOST_TEXT, _FREE_TEXT + _TEXT_A_BYTE * file_bytes)
        self.dense = _FREE_DENSE + _DENSE_A_BYTE * file_bytes

    def take(self, kind: str, count: int) -> None:
        """Spend `count` of one kind. Raises `BudgetError` if less is left, before any work is done."""
        left = getattr(self, kind)
        if count > left:
            raise BudgetError(f"asks for {count} {kind} where {left} are left, in a file of {self.file_bytes} bytes")
        setattr(self, kind, left - count)


class BudgetError(ValueError):
    """A file requires more than its size explains; readers turn this into their own `RSTError`."""


def check_settings(value: object) -> None:
    """Raise `ValueError` for settings with more than 64 levels, or more values than allowed.

    A pickle may hold one list twice in another, that one twice in a third and so on: few bytes, but endless when
    written.
    """
    left, waiting = MOST_SETTINGS, [(value, 0)]
    while waiting:
        item, level = waiting.pop()
        if level > DEEPEST:
            raise ValueError(f"more than {DEEPEST} levels")
        inside = item.values() if isinstance(item, dict) else item if isinstance(item, (list, tuple)) else ()
        if (left := left - len(inside)) < 0:
            raise ValueError(f"more than {MOST_SETTINGS} values")
        waiting += [(one, level + 1) for one in inside]

"""What reading one untrusted file may cost: so many things and so much memory as its own bytes explain."""

_FREE_STEPS, _STEPS_A_BYTE = 1 << 24, 16
_FREE_RECORDS, _BYTES_A_RECORD = 1 << 12, 16
_FREE_ENTRIES, _ENTRIES_A_BYTE = 1 << 20, 16
_FREE_TEXT, _TEXT_A_BYTE, _MOST_TEXT = 1 << 16, 64, 1 << 27
_FREE_DENSE, _DENSE_A_BYTE = 1 << 28, 1024

DEEPEST = 64
"""Levels of settings; they are saved again, by functions that call themselves."""
MOST_SETTINGS = 1 << 20
"""Values in settings, each counted as often as it is reached: shared ones are written out when they are saved."""


class Budget:
    """What a file of some bytes may make its reader do. A writer that would exceed it packs less.

    Attributes:
        steps: of looking at a pickle's objects, some tens of nanoseconds each.
        records: things that are described one by one, such as parameters; a thousand bytes of memory each.
        entries: numbers unpacked from compressed streams, of all streams together.
        text: bytes of text that a compressed part unfolds to.
        dense: bytes of tensors of shapes that nothing but the file vouches for.
    """

    def __init__(self, file_bytes: int) -> None:
        """Count what `file_bytes` allow."""
        self.file_bytes = file_bytes
        self.steps = _FREE_STEPS + _STEPS_A_BYTE * file_bytes
        self.records = _FREE_RECORDS + file_bytes // _BYTES_A_RECORD
        self.entries = _FREE_ENTRIES + _ENTRIES_A_BYTE * file_bytes
        self.text = min(_MOST_TEXT, _FREE_TEXT + _TEXT_A_BYTE * file_bytes)
        self.dense = _FREE_DENSE + _DENSE_A_BYTE * file_bytes

    def take(self, kind: str, count: int) -> None:
        """Spend some of one kind. Raises `BudgetError` if less is left, before anything is done for it."""
        left = getattr(self, kind)
        if count > left:
            raise BudgetError(f"asks for {count} {kind} where {left} are left, in a file of {self.file_bytes} bytes")
        setattr(self, kind, left - count)


class BudgetError(ValueError):
    """A file asks for more than its bytes explain; readers turn it into their own `RSTError`."""


def check_settings(value: object) -> None:
    """Raise `ValueError` for settings of more than 64 levels, or of more values than settings have.

    A pickle may hold one list twice in another, that twice in a third and so on: few bytes, but written out no end.
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

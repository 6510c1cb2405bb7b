"""Undoing the work of a block if it fails, so that all of it is done or nothing."""

from collections.abc import Callable
from types import TracebackType


class UndoOnError:
    """Call `undo` if the block ends in an exception, Ctrl-C included.

    `undo` may run after all, some or none of the block's work, and must restore the initial state in each case.

    This is a class rather than a generator, because Ctrl-C may drop a generator on the way out of its block, after the
    work is done, and Python would then run the undo when it collects the generator.
    """

    def __init__(self, undo: Callable[[], object]) -> None:
        """Store the undo function, before anything is done."""
        self._undo = undo

    def __enter__(self) -> None:
        """Start the block."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Undo if there was an exception, which propagates."""
        if kind is not None:
            self._undo()

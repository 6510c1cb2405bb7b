"""All or nothing: what a block has done is undone if it fails."""

from collections.abc import Callable
from types import TracebackType


class UndoOnError:
    """Call `undo` if the block ends in an exception, Ctrl-C included.

    `undo` may find all of the block's work done, half of it or nothing, and must lead back from each.

    A class and not a generator: Ctrl-C may drop a generator on the way out of its block, after the work is done, and
    Python would then run what undoes it whenever it collects the generator.
    """

    def __init__(self, undo: Callable[[], object]) -> None:
        """Take the way back, before anything is done."""
        self._undo = undo

    def __enter__(self) -> None:
        """Start the block."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Undo if there was an exception, which goes on."""
        if kind is not None:
            self._undo()

"""Ctrl-C ends a command with one sentence at any moment, even while torch is imported or Python shuts down."""

import _thread
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_AGAIN_S = 0.05


@contextmanager
def interruptible(*, owns_process: bool) -> Iterator[None]:
    """Let Ctrl-C raise `KeyboardInterrupt` in the body, but during an import only once it is done.

    torch's extension modules are C++: an exception during their initialisation aborts the process.

    Args:
        owns_process: only Python's exit follows the body, so Ctrl-C is ignored afterwards.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield  # ignored, as in a shell's background job, or somebody else's to handle
        return
    outside = _imports_under_way(sys._getframe())

    def interrupt(number: int, frame: FrameType | None) -> None:
        if _imports_under_way(frame) == outside:
            signal.default_int_handler(number, frame)
        again = threading.Timer(_AGAIN_S, _thread.interrupt_main)
        again.daemon = True
        again.start()

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN if owns_process else before)


def _imports_under_way(frame: FrameType | None) -> int:
    count = 0
    while frame is not None:
        count += frame.f_code.co_filename.startswith("<frozen importlib")
        frame = frame.f_back
    return count

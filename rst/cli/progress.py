"""A progress bar in bytes for longer work."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

_PATIENCE = 1.0  # seconds before a bar appears


@contextmanager
def byte_progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """Yield an `on_progress(done, total)` that draws on stderr once a second has passed, if that is a terminal."""
    with ExitStack() as stack:
        update: Callable[[int, int], None] | None = None
        started = time.monotonic()

        def on_progress(done: int, total: int) -> None:
            nonlocal update
            if update is None and time.monotonic() - started > _PATIENCE:
                update = _start_bar(stack, label)
            if update:
                update(done, total)

        yield on_progress


def _start_bar(stack: ExitStack, label: str) -> Callable[[int, int], None]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        return lambda done, total: None
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    bar = stack.enter_context(Progress(*columns, TimeRemainingColumn(), console=console, transient=True))
    task = bar.add_task(label, total=None)
    return lambda done, total: bar.update(task, completed=done, total=total)

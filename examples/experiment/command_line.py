"""Common parts of the command lines: errors in one message, and a progress bar of a run's iterations."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

MISUSE = 2
"""The exit code."""


def run_command_line(app: typer.Typer, console: Console, refusals: tuple[type[Exception], ...]) -> None:
    """Run the command that `sys.argv` names; what a user can put right ends in one message and exit code 2.

    Args:
        app: the commands.
        console: for the message.
        refusals: the errors that a user can put right; others are bugs, and raised.
    """
    try:
        app()
    except refusals as error:
        console.print(f"[red]Error[/red] {type(error).__name__}:", highlight=False)
        console.print(str(error), markup=False, highlight=False)
        sys.exit(MISUSE)


def bars(console: Console) -> Progress:
    """A place for bars with a name, a count and the time left."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)


@contextmanager
def bar(progress: Progress, name: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar while a run lasts; what it yields is to be told the number of iterations done."""
    task = progress.add_task(name, total=total)
    yield lambda done: progress.update(task, completed=done)
    progress.remove_task(task)

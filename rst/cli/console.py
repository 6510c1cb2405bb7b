"""Output of the commands: results on stdout, as text or JSON, and errors in one sentence on stderr."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import typer

from rst.printable import in_one_line, printable

_UNBOUNDED = 10_000


def say(text: str) -> None:
    """Print one line of a result. All commands print through this module, because names and paths may hold anything."""
    typer.echo(printable(text))


def print_json(record: Mapping[str, Any]) -> None:
    """Print one JSON object."""
    print(json.dumps(record, indent=2))


def print_error(kind: str, message: str, as_json: bool) -> None:
    """Print one sentence on stderr, or `{"error": {"type": ..., "message": ...}}` on stdout."""
    sentence = in_one_line(" ".join(message.split()))
    if as_json:
        print_json({"error": {"type": kind, "message": sentence}})
    else:
        typer.echo(f"{typer.style('error:', fg='red', bold=True)} {sentence}", err=True)


def print_warning(message: str) -> None:
    """Print a warning, one sentence on stderr."""
    typer.echo(f"{typer.style('warning:', fg='yellow', bold=True)} {in_one_line(message)}", err=True)


def print_advice(message: str) -> None:
    """Print advice as part of a result."""
    typer.echo(f"{typer.style('advice:', fg='yellow', bold=True)} {printable(message)}")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, the first column left-aligned, others right-aligned; at full width without a terminal.

    Without rows it prints nothing.
    """
    if not rows:
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    first, *others = columns
    table.add_column(first, overflow="fold")
    for column in others:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    Console(width=None if sys.stdout.isatty() else _UNBOUNDED).print(table)


def human_size(nbytes: int) -> str:
    """Format bytes with a decimal unit.

    >>> human_size(104_200)
    '104.2 kB'
    """
    from rich.filesize import decimal

    return decimal(nbytes)

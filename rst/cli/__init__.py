"""The command line: `rst export`, `rst merge`, `rst inspect`, `rst verify`, `rst convert`, `rst diff`, `rst combine`,
`rst tau`, `rst sign`, `rst sync`, `rst doctor`.

Commands import torch inside their bodies, so that `rst --help` answers at once.
"""

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from rst.cli import combine, convert, diff, doctor, export, inspect, merge, sign, sync, tau, verify
from rst.cli.console import print_error, print_warning
from rst.cli.interrupts import interruptible
from rst.errors import RSTError, RSTWarning
from rst.version import __version__

_OK, _REFUSED, _INTERRUPTED = 0, 2, 130
# click's class of argument errors, wherever this version of typer keeps click
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]

_START = "Start with [bold]rst export --base base.pt tuned.pt[/bold]; [bold]rst doctor[/bold] checks this machine."

app = typer.Typer(epilog=_START, rich_markup_mode="rich", pretty_exceptions_enable=False)
app.command(epilog=export.EXAMPLE)(export.export)
app.command(epilog=tau.EXAMPLE)(tau.tau)
app.command(epilog=merge.EXAMPLE)(merge.merge)
app.command(epilog=inspect.EXAMPLE)(inspect.inspect)
app.command(epilog=verify.EXAMPLE)(verify.verify)
app.command(epilog=sign.EXAMPLE)(sign.sign)
app.command(epilog=convert.EXAMPLE)(convert.convert)
app.command(epilog=diff.EXAMPLE)(diff.diff)
app.command(epilog=combine.EXAMPLE, cls=combine.WeightsInARow)(combine.combine)
app.add_typer(sync.app, name="sync")
app.command(epilog=doctor.EXAMPLE)(doctor.doctor)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `rst`.

    Args:
        arguments: words after `rst`; None takes those of this process.

    Returns:
        The exit code: 0, or 2 for anything refused, or 130 after Ctrl-C.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("always", RSTWarning)
        warnings.showwarning = _showing(warnings.showwarning)
        with interruptible(owns_process=arguments is None):
            return _run(words)


def _run(words: Sequence[str]) -> int:
    as_json = "--json" in words  # checked in the words, because invalid words never reach a command
    try:
        code = app(words, prog_name="rst", standalone_mode=False) or _OK
    except _UsageError as error:
        print_error("UsageError", _describe_usage(error), as_json)
        return _REFUSED
    except RSTError as error:
        print_error(type(error).__name__, str(error), as_json)
        return _REFUSED
    except OSError as error:
        print_error(type(error).__name__, _describe_os(error), as_json)
        return _REFUSED
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    if code == _INTERRUPTED:  # typer turns Ctrl-C into this code
        print_error("KeyboardInterrupt", "interrupted; no file was left half written", as_json)
    return int(code)


def _showing(otherwise: Callable[..., None]) -> Callable[..., None]:
    """Return a function that shows warnings: those of this library in one sentence, without the source line."""

    def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
        if issubclass(category, RSTWarning):
            print_warning(str(message))
        else:
            otherwise(message, category, *place)

    return show


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Ship 0.1 % of a fine-tuned model: [bold]exact sparse deltas[/bold] of PyTorch checkpoints."""
    if version:
        print(f"rst {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(_REFUSED)


def _describe_usage(error: Any) -> str:
    command = error.ctx.command_path if error.ctx else "rst"
    hint = (
        "; the base belongs after --base" if "unexpected extra argument" in error.message and _takes_base(error) else ""
    )
    return f"{error.format_message().rstrip('.')}{hint} (see {command} --help)"


def _takes_base(error: Any) -> bool:
    """Whether the command has the option --base: `rst merge` takes its base as an argument, `rst export` does not."""
    return any("--base" in parameter.opts for parameter in error.ctx.command.params)


def _describe_os(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)

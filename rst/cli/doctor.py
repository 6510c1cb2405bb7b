"""`rst doctor`: versions, backends and their speed on this machine, and the command that installs what is missing."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rst.cli.console import print_advice, print_json, say
from rst.extras import install_command

if TYPE_CHECKING:
    from rst.doctor.backends import Backends
    from rst.doctor.speeds import Speed
    from rst.doctor.versions import Extra

EXAMPLE = "Example: [bold]rst doctor --json[/bold]"


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Print versions and backends, measure their speed in a few seconds, and suggest what to install."""
    from rst.doctor.advice import advice
    from rst.doctor.backends import find_backends
    from rst.doctor.versions import core_versions, extras

    versions, optional = core_versions(), extras()
    with _working("compiling and measuring"):
        backends = find_backends()
        speeds = _measure(backends)
    findings = advice(backends, optional)
    if as_json:
        print_json(_record(versions, optional, backends, speeds, findings))
        return
    say("  ".join(f"{name} {version or 'missing'}" for name, version in versions.items()))
    for extra in optional:
        say(f"{'extra ' + extra.name:<22}{_extra(extra)}")
    for label, text in _backend_lines(backends):
        say(f"{label:<22}{text}")
    for speed in speeds:
        say(f"{speed.name:<22}{speed.value:>8,.2f} {speed.unit:<12}{speed.note}")
    for finding in findings:
        print_advice(finding)
    if not findings:
        say("no problems found")


def _measure(backends: "Backends") -> list["Speed"]:
    from rst.doctor.backends import best_device
    from rst.doctor.speeds import codec, disk, memory_and_projection

    speeds = [*memory_and_projection(best_device(), backends.compiles), codec()]
    try:
        return [*speeds, *disk(Path())]
    except OSError:  # the folder is read-only; a temporary one measures the same disk speed
        import tempfile

        return [*speeds, *disk(Path(tempfile.gettempdir()))]


def _record(
    versions: dict[str, str | None],
    optional: list["Extra"],
    backends: "Backends",
    speeds: list["Speed"],
    findings: list[str],
) -> dict[str, Any]:
    return {
        "versions": versions,
        "extras": {extra.name: extra.packages for extra in optional},
        "backends": asdict(backends),
        "speeds": {speed.name: {"value": round(speed.value, 3), "unit": speed.unit} for speed in speeds},
        "advice": findings,
    }


def _extra(extra: "Extra") -> str:
    if len(extra.missing) == len(extra.packages):
        return f"not installed ({install_command(extra.name)})"
    return "  ".join(f"{name} {version or 'missing'}" for name, version in extra.packages.items())


def _backend_lines(backends: "Backends") -> list[tuple[str, str]]:
    compiled = f"works, {backends.compile_seconds:.1f} s to compile or to find in the cache"
    return [
        ("cores", f"{backends.cores}, torch uses {backends.threads} threads"),
        ("GPU", ", ".join(backends.cuda) or "none that torch sees"),
        ("projection", f"eager works; compiled {compiled if backends.compiles else 'does not'}"),
    ]


@contextmanager
def _working(label: str) -> Iterator[None]:
    """Show on a terminal's stderr that work is in progress; suppress torch's compiler logs there."""
    from rich.console import Console

    logging.disable(logging.WARNING)
    try:
        with Console(stderr=True).status(label) if sys.stderr.isatty() else nullcontext():
            yield
    finally:
        logging.disable(logging.NOTSET)

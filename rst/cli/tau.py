"""`rst tau`: what each threshold would keep of a finished fine-tune, to help choose one."""

from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rst.cli.allow_class import AllowClass
from rst.cli.console import human_size, print_json, print_table, say
from rst.cli.hub_ids import local_weights
from rst.cli.output_paths import check_output
from rst.cli.pair_options import Exclude, TunedKey
from rst.cli.progress import byte_progress
from rst.errors import ConfigError

if TYPE_CHECKING:
    from rst.operations.tau_curve import TauCurve

EXAMPLE = "Example: [bold]rst tau base.pt tuned.pt[/bold], or [bold]rst tau base.pt tuned.pt --html tau.html[/bold]"
_COLUMNS = ("tau", "kept", "share", "plain", "packed", "put back, norm", "of the change", "largest")


def tau(
    base: Annotated[Path, typer.Argument(metavar="BASE", help="Weights that fine-tuning started from.")],
    tuned: Annotated[Path, typer.Argument(metavar="TUNED", help="Fine-tuned weights of the same model.")],
    modules_to_save: Annotated[
        list[str] | None,
        typer.Option(help="A module to store whole instead of selecting its weights; may be repeated."),
    ] = None,
    exclude: Exclude = None,
    key: TunedKey = None,
    base_key: Annotated[str | None, typer.Option(help="The same for BASE.")] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a page with the curve to one file that needs no network.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing page (never an input).")] = False,
    allow_class: AllowClass = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what each tau keeps of the change from BASE to TUNED: share, bytes, and the size of what it resets.

    The command reads both checkpoints twice, tensor by tensor.
    """
    from rst.checkpoints.checkpoint import checkpoint_files
    from rst.operations.tau_curve import tau_curve

    before, after = local_weights(base), local_weights(tuned)
    if html:
        check_output(html, [file for weights in (before, after) for file in checkpoint_files(weights)], force)
    elif force:
        raise ConfigError("--force applies to the HTML page only; name the page with --html tau.html")
    with byte_progress("comparing") as on_progress:
        curve = tau_curve(
            before,
            after,
            modules_to_save=modules_to_save,
            exclude_modules=exclude,
            key=key,
            base_key=base_key,
            on_progress=on_progress,
        )
    if html:
        _write_page(html, base, tuned, curve)
    if as_json:
        print_json(_record(base, tuned, curve) | ({"html": str(html)} if html else {}))
    elif html:
        say(f"wrote {html} ({human_size(html.stat().st_size)}); open it in a browser")
    else:
        _print(base, tuned, curve)


def _write_page(page: Path, base: Path, tuned: Path, curve: "TauCurve") -> None:
    from rst.files.atomic import atomic_write
    from rst.report.tau_page import render_curve

    text = render_curve(str(base), str(tuned), curve)
    with atomic_write(page) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _record(base: Path, tuned: Path, curve: "TauCurve") -> dict[str, Any]:
    points = [asdict(point) | {"share": _share(point.kept, curve.weights)} for point in curve.points]
    return {"base": str(base), "tuned": str(tuned), **asdict(curve), "points": points}


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _print(base: Path, tuned: Path, curve: "TauCurve") -> None:
    print_table(
        _COLUMNS,
        [
            (
                f"{point.tau:g}",
                f"{point.kept:,}",
                f"{_share(point.kept, curve.weights):.4%}",
                human_size(point.plain_bytes),
                human_size(point.packed_bytes),
                f"{point.dropped_l2:.3g}",
                f"{_share(point.dropped_l2, curve.l2):.1%}",
                f"{point.dropped_max:.3g}",
            )
            for point in curve.points
        ],
    )
    more = f", {human_size(curve.whole_bytes)} of them stored whole at any tau" if curve.whole_bytes else ""
    say(f"of {curve.weights:,} weights; the tuned tensors take {human_size(curve.tuned_bytes)}{more}")
    if not any(point.kept for point in curve.points):
        say("nothing to select: all weights are equal to the base's")
        return
    say(f"export with: rst export --base {quote(str(base))} {quote(str(tuned))} --threshold TAU, or --ratio SHARE")

"""`rst export`: store what fine-tuning changed in one small, exact file."""

from contextlib import nullcontext
from enum import Enum
from pathlib import Path
from shlex import quote
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rst.cli.allow_class import AllowClass
from rst.cli.console import human_size, print_json, print_warning, say
from rst.cli.dtype_option import CastTuned
from rst.cli.export_warnings import warn_of_outcome
from rst.cli.hub_ids import local_weights
from rst.cli.op_option import WantedOperation
from rst.cli.output_paths import check_output, delta_beside
from rst.cli.pair_options import Exclude, TunedKey
from rst.cli.progress import byte_progress
from rst.errors import ConfigError

if TYPE_CHECKING:
    from rst.delta.sparse_delta import SparseDelta

EXAMPLE = "Example: [bold]rst export --ratio 0.002 --base base.pt model.ckpt[/bold] writes model.delta.safetensors"

_HEADERS = 1 << 16
"""Largest header of a file in bytes; smaller files get no size warning."""


class Select(str, Enum):
    """Selections that a finished checkpoint allows."""

    THRESHOLD = "threshold"
    TOP = "top"
    BIAS = "bias"


class Encoding(str, Enum):
    """The encodings of `SparseDelta.save`, defined here so that the choices of --encoding do not import torch."""

    COO = "coo"
    PACKED = "packed"


def export(
    tuned: Annotated[
        Path,
        typer.Argument(metavar="TUNED", help="Fine-tuned weights: checkpoint, shard index, model folder or hub id."),
    ],
    base: Annotated[
        Path | None,
        typer.Option("--base", "-b", help="Weights that it started from. Default: those in TUNED's own record."),
    ] = None,
    ratio: Annotated[
        float | None,
        typer.Option(
            help="Keep this share: the weights that changed most. Default: the record's rule, or all changes."
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Keep changes above this value (tau); rst tau shows how many weights each would keep."),
    ] = None,
    select: Annotated[
        Select | None,
        typer.Option(help="top: the share --ratio, or 0.2 %; threshold: changes above --threshold; bias: only biases."),
    ] = None,
    modules_to_save: Annotated[
        list[str] | None, typer.Option(help="A module to store whole, such as a task head; may be repeated.")
    ] = None,
    exclude: Exclude = None,
    key: TunedKey = None,
    base_key: Annotated[str | None, typer.Option(help="The same for the base.")] = None,
    dtype: CastTuned = None,
    encoding: Annotated[
        Encoding, typer.Option(help="coo: readable with safetensors alone; packed: a third of the bytes or less.")
    ] = Encoding.COO,
    operation: Annotated[
        WantedOperation,
        typer.Option(
            "--op",
            help="add: residuals, which combine and scale; replace: tuned values, which need no base to be read; step: "
            "integers, only on their own base; smallest: of the three, when packed.",
        ),
    ] = WantedOperation.ADD,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="File to write. Default: TUNED's name with .delta.safetensors, in its folder."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing output (never an input).")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do all the work and write nothing.")] = False,
    allow_class: AllowClass = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Store the change from the base weights to TUNED, bit for bit, in one small file.

    If the export of a huge checkpoint is killed, it leaves OUTPUT.partial; run the same command again to resume it.
    """
    from rst.checkpoints.checkpoint import checkpoint_files, open_checkpoint
    from rst.numerics.exactness import bytes_of_tensor
    from rst.operations.export import export as extract

    if base is None and (modules_to_save or exclude or dtype):
        raise ConfigError(
            "--modules-to-save, --exclude and --dtype need --base; without it, the settings of the record in TUNED "
            "apply"
        )
    target = output or delta_beside(tuned)
    after, before = local_weights(tuned), local_weights(base) if base else None
    inputs = [file for weights in (after, before) if weights for file in checkpoint_files(weights)]
    check_output(target, inputs, force or dry_run, kind="a delta")
    with byte_progress("comparing") as on_progress:
        delta = extract(
            before,
            after,
            threshold=threshold,
            ratio=ratio,
            select=None if select is None else select.value,
            modules_to_save=modules_to_save,
            exclude_modules=exclude,
            key=key,
            base_key=base_key,
            dtype=None if dtype is None else dtype.in_torch,
            op=operation.value,
            on_progress=on_progress,
            output=None if dry_run else target,
            encoding=encoding.value,
        )
    with TemporaryDirectory() if dry_run else nullcontext() as folder:
        file = Path(folder) / target.name if folder else target
        if dry_run:
            delta.save(file, encoding.value)
        size, checkpoint = file.stat().st_size, open_checkpoint(after, key)
        whole = sum(bytes_of_tensor(checkpoint.outline(name)) for name in checkpoint)
        if size > max(whole, _HEADERS) and encoding is Encoding.COO:
            delta.save(file, "packed")
            _say_larger(size, whole, delta.density)
            size, encoding = file.stat().st_size, Encoding.PACKED
        else:
            warn_of_outcome(delta, tuned, None if base else checkpoint.record)
    record = _record(delta) | {
        "output": str(target),
        "written": not dry_run,
        "bytes": size,
        "tuned_bytes": whole,
        "encoding": encoding.value,
        "op": delta.op,
        "tuned": str(tuned),
        "base": str(base) if base else None,
    }
    if as_json:
        print_json(record)
    else:
        _print(record, str(base) if base else delta.base.name or "BASE")


def _say_larger(size: int, whole: int, density: float) -> None:
    print_warning(
        f"{density:.1%} of the weights changed, so that plain arrays take {human_size(size)} and the tuned weights "
        f"{human_size(whole)}. The delta was written with --encoding packed instead; use --ratio 0.002 or a higher "
        f"--threshold to keep fewer weights"
    )


def _record(delta: "SparseDelta") -> dict[str, Any]:
    return {
        "changed": delta.nnz,
        "weights": delta.base.weights,
        "density": delta.density,
        "stored_whole": len(delta.dense),
        "dsp": delta.dsp(),
        "config": dict(delta.config),
    }


def _print(record: dict[str, Any], base: str) -> None:
    from rst.delta.sparse_delta import dsp_in_words

    verb = "wrote" if record["written"] else "would write"
    size, whole = record["bytes"], record["tuned_bytes"]
    share = f", {size / whole:.2%} of the tuned weights' {human_size(whole)}" if whole else ""
    form = "" if record["op"] == "add" else f", op {record['op']}"
    say(f"{verb} {record['output']} ({human_size(size)}{share}){form}")
    more = f", {record['stored_whole']:,} tensors stored whole" if record["stored_whole"] else ""
    say(f"{record['changed']:,} of {record['weights']:,} weights changed ({record['density']:.4%}){more}")
    say(f"downstream parameters (DSP): {dsp_in_words(record['dsp'], record['changed'])}")
    if record["written"]:
        say(f"merge it with: rst merge {quote(base)} {quote(record['output'])}")

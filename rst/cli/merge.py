"""`rst merge`: recreate the tuned checkpoint, bit for bit."""

from pathlib import Path
from typing import Annotated

import typer

from rst.cli.allow_class import AllowClass
from rst.cli.console import human_size, print_json, say
from rst.cli.dtype_option import CastDelta
from rst.cli.hub_ids import local_delta, local_weights
from rst.cli.output_paths import check_output, merged_beside
from rst.cli.progress import byte_progress

EXAMPLE = "Example: [bold]rst merge base.pt model.delta.safetensors[/bold] writes base.merged.pt"


def merge(
    base: Annotated[
        Path,
        typer.Argument(metavar="BASE", help="The base's weights: checkpoint, shard index, model folder or hub id."),
    ],
    delta: Annotated[
        Path,
        typer.Argument(
            metavar="DELTA", help="Made from this base: a delta.safetensors, an adapter's folder or hub id."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="File to write, or a new folder for shards. Default: BASE's name with .merged, in its folder.",
        ),
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="Which of several sets of weights in BASE, such as state_dict_ema.")
    ] = None,
    max_shard_size: Annotated[
        str | None, typer.Option(help="Largest shard of an output folder, such as 500MB. Default: 5GB.")
    ] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Change BASE's own .safetensors files; needs --undo.")
    ] = False,
    undo: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --in-place: the delta to write that leads back.")
    ] = None,
    dtype: CastDelta = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing output (never an input).")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do all the work and write nothing.")] = False,
    allow_class: AllowClass = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Merge DELTA into BASE to recreate the tuned weights, bit for bit, in the base's kind of file or in shards.

    An output folder also gets the settings and the tokenizer of a base folder. If the command is killed while it
    writes a folder, it leaves OUTPUT.partial; run the same command again to resume it.

    With --in-place only the pages that change are written. First the undo file is: a delta, which a second
    `rst merge BASE FILE --in-place --undo REDO` takes. If the command is killed, run it again to complete it.
    """
    from rst.checkpoints.checkpoint import checkpoint_files
    from rst.delta.file import delta_file, load_delta
    from rst.errors import ConfigError
    from rst.operations.merge import is_folder, rehearse
    from rst.operations.merge import merge as merge_files
    from rst.operations.merge_in_place import merge_in_place

    if in_place != (undo is not None) or (undo and (output or key or max_shard_size)):
        raise ConfigError("--in-place needs --undo FILE, and takes no --output, --key or --max-shard-size")
    weights, delta_path = local_weights(base), local_delta(delta)
    inputs = [*checkpoint_files(weights), delta_file(delta_path)]
    if undo:
        check_output(undo, inputs, force=True, kind="an undo file")  # one that exists belongs to a killed command
    target = weights if undo else output or merged_beside(base)
    if not undo and not is_folder(target, max_shard_size, weights):
        check_output(target, inputs, force or dry_run)
    change = load_delta(delta_path)
    if dtype is not None:
        change = change.to(dtype=dtype.in_torch)
    with byte_progress("merging") as on_progress:
        if undo:
            merge_in_place(weights, change, undo, write=not dry_run, on_progress=on_progress)
        elif dry_run:
            size = rehearse(weights, change, target, key=key, max_shard_size=max_shard_size, on_progress=on_progress)
        else:
            merge_files(weights, change, target, key=key, max_shard_size=max_shard_size, on_progress=on_progress)
        if undo or not dry_run:
            size = sum(file.stat().st_size for file in [target, *target.rglob("*")] if file.is_file())
    if as_json:
        print_json(
            {
                "output": str(target),
                "written": not dry_run,
                "bytes": size,
                "base": str(base),
                "delta": str(delta),
                "changed": change.nnz,
                "parameters": len(change),
                "stored_whole": len(change.dense),
            }
            | ({"undo": str(undo)} if undo else {})
        )
        return
    done = f"would write {target} (about {human_size(size)})" if dry_run else f"wrote {target} ({human_size(size)})"
    if undo:
        done = f"would change {target}" if dry_run else f"changed {target}; {undo} leads back"
    say(done)
    whole = f", {len(change.dense):,} tensors stored whole" if change.dense else ""
    say(f"{change.nnz:,} weights in {len(change):,} parameters changed{whole}")

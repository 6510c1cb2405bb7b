"""`rst convert`: converts a delta to another form, a PEFT adapter to a delta, or a delta to a PEFT adapter."""

import warnings
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rst.cli.allow_class import AllowClass
from rst.cli.console import human_size, print_json, say
from rst.cli.convert_source import read_source, source_files
from rst.cli.export import Encoding
from rst.cli.hub_ids import local_weights
from rst.cli.op_option import WantedOperation
from rst.cli.output_paths import check_output
from rst.errors import ConfigError

if TYPE_CHECKING:
    from rst.delta.sparse_delta import SparseDelta

EXAMPLE = (
    "Example: [bold]rst convert model.delta.safetensors small.safetensors --encoding packed[/bold], "
    "[bold]rst convert my-lora/ lora.safetensors --base llama/ --threshold 1e-5[/bold], or "
    "[bold]rst convert model.delta.safetensors shira/ --to shira --base llama/[/bold]"
)
_DELTA_ONLY, _ADAPTER_ONLY = "To a delta", "From PEFT or a released checkpoint"


class Target(str, Enum):
    """The output formats."""

    DELTA = "delta"
    SHIRA = "shira"
    TASK_VECTOR = "task-vector"


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE", help="A delta.safetensors, a PEFT adapter's folder, or a released .pt of the paper."
        ),
    ],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="File to write; for --to shira, a folder.")],
    target: Annotated[
        Target,
        typer.Option("--to", help="delta; shira: a PEFT adapter with the same outputs; task-vector: dense residuals."),
    ] = Target.DELTA,
    base: Annotated[
        Path | None,
        typer.Option(
            "--base",
            "-b",
            help="Weights that SOURCE was made from, to change --op; a model folder, to convert to or from PEFT.",
        ),
    ] = None,
    encoding: Annotated[
        Encoding | None,
        typer.Option(
            help="coo (default): readable with safetensors alone; packed: a third of the bytes or less.",
            rich_help_panel=_DELTA_ONLY,
        ),
    ] = None,
    operation: Annotated[
        WantedOperation | None,
        typer.Option(
            "--op",
            help="add: residuals; replace: tuned values; step: integers, only on their own base; smallest: of the "
            "three, when packed. Default: SOURCE's.",
            rich_help_panel=_DELTA_ONLY,
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Keep changes above this value (tau). Default: every changed bit of a merged adapter.",
            rich_help_panel=_ADAPTER_ONLY,
        ),
    ] = None,
    backbone_prefix: Annotated[
        str | None,
        typer.Option(help="Prefix for a released backbone's names. Default: nothing.", rich_help_panel=_ADAPTER_ONLY),
    ] = None,
    head_prefix: Annotated[
        str | None,
        typer.Option(help='Prefix for a released head\'s names. Default: "head.".', rich_help_panel=_ADAPTER_ONLY),
    ] = None,
    partial: Annotated[
        bool,
        typer.Option("--partial", help="With --to: leave out what the other format cannot hold, and list it."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing output (never an input).")] = False,
    allow_class: AllowClass = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Convert SOURCE to another form. Converting between deltas is exact: merged, they give the same weights
    bit for bit."""
    from rst.checkpoints.checkpoint import checkpoint_files
    from rst.operations.convert import convert as convert_delta

    _check_options(target, encoding, operation, partial)
    source, base = local_weights(source), local_weights(base) if base else None
    inputs = [*source_files(source), *(checkpoint_files(base) if base else ())]
    is_folder = target is Target.SHIRA
    kind = None if is_folder else f"a {target.value.replace('-', ' ')}"
    check_output(output, inputs, force, kind=kind, is_folder=is_folder)
    with warnings.catch_warnings():  # a user of the command line cannot act on them
        warnings.simplefilter("ignore", FutureWarning)
        delta = read_source(source, base, threshold, backbone_prefix, head_prefix)
        if operation:
            delta = convert_delta(delta, op=operation.value, base=base)
        left_out = _write(delta, output, target, base, encoding or Encoding.COO, partial)
    record = {
        "output": str(output),
        "bytes": _size(output),
        "to": target.value,
        "delta": str(source),
        "delta_bytes": _size(source),
    }
    if target is Target.DELTA:
        record |= {"encoding": (encoding or Encoding.COO).value, "op": delta.op}
    else:
        record |= {"left_out": left_out}
    if as_json:
        print_json(record)
        return
    form = f"encoding {record['encoding']}, op {delta.op}" if target is Target.DELTA else target.value
    say(f"wrote {output} ({human_size(_size(output))}, {human_size(_size(source))} before), {form}")
    for name, reason in left_out.items():
        say(f"not carried as it is: {name} {reason}")


def _check_options(target: Target, encoding: Encoding | None, operation: WantedOperation | None, partial: bool) -> None:
    if target is not Target.DELTA and (encoding or operation):
        raise ConfigError(f"--encoding and --op apply to deltas only; leave them out with --to {target.value}")
    if target is Target.DELTA and partial:
        raise ConfigError("--partial applies to --to shira and --to task-vector only; a delta can hold everything")


def _write(
    delta: "SparseDelta", output: Path, target: Target, base: Path | None, encoding: Encoding, partial: bool
) -> dict[str, str]:
    """Write the delta in the requested form; return what that form cannot hold."""
    from rst.interop.shira import to_shira
    from rst.interop.task_vector import to_task_vector

    if target is Target.SHIRA:
        if base is None:
            raise ConfigError("--to shira needs the base's model folder to find its layers; pass it with --base")
        return to_shira(delta, output, base, partial=partial)
    if target is Target.TASK_VECTOR:
        return to_task_vector(delta, output, base=base, partial=partial)
    delta.save(output, encoding.value)
    return {}


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in source_files(path))

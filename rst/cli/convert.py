"""`rst convert`: the same delta in another encoding or operation."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from rst.cli.console import human_size, print_json
from rst.cli.export import Encoding
from rst.cli.output_paths import OutputError, check_output

EXAMPLE = "Example: [bold]rst convert model.delta.safetensors small.safetensors --encoding packed[/bold]"


class Operation(str, Enum):
    """The operations of `ParameterDelta`; the choices of --op are known before torch is imported."""

    ADD = "add"
    REPLACE = "replace"
    STEP = "step"


def convert(
    delta: Annotated[Path, typer.Argument(metavar="DELTA", help="A delta.safetensors.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="File to write.")],
    encoding: Annotated[
        Encoding, typer.Option(help="coo: readable with safetensors alone; packed: a third of the bytes or less.")
    ] = Encoding.COO,
    operation: Annotated[
        Operation | None,
        typer.Option(
            "--op",
            help="add: residuals; replace: tuned values; step: integers, smallest in bfloat16. Default: DELTA's.",
        ),
    ] = None,
    base: Annotated[
        Path | None, typer.Option("--base", "-b", help="Weights that DELTA was made from; needed to change --op.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing output (never an input).")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write DELTA in another encoding or operation; merged, it gives the same weights bit for bit."""
    from rst.checkpoints import checkpoint_files
    from rst.conversion import convert as convert_delta
    from rst.delta import SparseDelta

    if output.suffix != ".safetensors":
        raise OutputError(f"{output}: a delta is a .safetensors file; choose such a name")
    check_output(output, [delta, *(checkpoint_files(base) if base else ())], force)
    change = SparseDelta.load(delta)
    converted = convert_delta(change, op=operation.value if operation else change.op, base=base)
    converted.save(output, encoding.value)
    record = {
        "output": str(output),
        "bytes": output.stat().st_size,
        "encoding": encoding.value,
        "op": converted.op,
        "delta": str(delta),
        "delta_bytes": delta.stat().st_size,
    }
    if as_json:
        print_json(record)
        return
    sizes = f"{human_size(output.stat().st_size)}, {human_size(delta.stat().st_size)} before"
    print(f"wrote {output} ({sizes}), encoding {encoding.value}, op {converted.op}")

"""`rst convert`: the same delta in another encoding or operation."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rst.cli.console import human_size, print_json
from rst.cli.output_paths import check_output

if TYPE_CHECKING:
    from rst.delta import Encoding
    from rst.parameter_delta import Op

EXAMPLE = "Example: [bold]rst convert model.delta.safetensors small.safetensors --encoding packed[/bold]"


def convert(
    delta: Annotated[Path, typer.Argument(metavar="DELTA", help="A delta.safetensors.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="File to write.")],
    encoding: Annotated[
        "Encoding", typer.Option(help="coo: plain arrays that safetensors reads. packed: a third of the bytes.")
    ] = "coo",
    op: Annotated[
        "Op | None", typer.Option(help="add: residuals. replace: tuned values. step: integers, smallest in bfloat16.")
    ] = None,
    base: Annotated[
        Path | None, typer.Option(metavar="BASE", help="The base's weights. Needed where --op changes the operation.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing output (never an input).")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write DELTA in another encoding or operation. Merged, it gives the same weights bit for bit."""
    from rst.checkpoints import checkpoint_files
    from rst.conversion import convert as convert_delta
    from rst.delta import SparseDelta

    check_output(output, [delta, *(checkpoint_files(base) if base else ())], force)
    change = SparseDelta.load(delta)
    converted = convert_delta(change, op=op or change.op, base=base)
    converted.save(output, encoding)
    size, before = output.stat().st_size, delta.stat().st_size
    if as_json:
        print_json(
            {
                "output": str(output),
                "bytes": size,
                "delta": str(delta),
                "delta_bytes": before,
                "encoding": encoding,
                "op": converted.op,
            }
        )
        return
    print(f'wrote {output} ({human_size(size)}, encoding {encoding}, op "{converted.op}"; {human_size(before)} before)')

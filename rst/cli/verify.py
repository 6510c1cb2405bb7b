"""`rst verify`: is the delta intact, and is this its base?"""

from pathlib import Path
from typing import Annotated

import typer

from rst.cli.allow_class import AllowClass
from rst.cli.console import print_json, say
from rst.cli.hub_ids import local_delta, local_weights
from rst.cli.progress import byte_progress

EXAMPLE = "Example: [bold]rst verify model.delta.safetensors --base base.pt[/bold]"


def verify(
    delta: Annotated[Path, typer.Argument(metavar="DELTA", help="The file to check.")],
    base: Annotated[
        Path | None, typer.Option("--base", "-b", help="Weights to check every changed parameter's digest against.")
    ] = None,
    allow_class: AllowClass = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check a delta's digest and structure, and with --base that it was made from these weights."""
    from rst.delta.sparse_delta import SparseDelta
    from rst.operations.merge import rehearse

    change = SparseDelta.load(local_delta(delta))
    if base:
        with byte_progress("checking") as on_progress:
            rehearse(local_weights(base), change, on_progress=on_progress)
    proven = sum(parameter.base is not None for parameter in change.values())
    if as_json:
        print_json(
            {
                "ok": True,
                "delta": str(delta),
                "base": str(base) if base else None,
                "parameters": len(change),
                "stored_whole": len(change.dense),
                "base_digests": proven,
            }
        )
        return
    say(f"{delta}: intact, {len(change):,} parameters, {len(change.dense):,} tensors stored whole")
    if base:
        say(f"{base}: is its base, by the digests of {proven:,} of {len(change):,} changed parameters")

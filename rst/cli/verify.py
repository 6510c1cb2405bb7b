"""`rst verify`: is the delta intact, and is this its base?"""

from pathlib import Path
from typing import Annotated

import typer

from rst.cli.allow_class import AllowClass
from rst.cli.console import print_json, say
from rst.cli.hub_ids import local_delta, local_weights
from rst.cli.progress import byte_progress

EXAMPLE = (
    "Example: [bold]rst verify model.delta.safetensors --base base.pt[/bold], or "
    "[bold]rst verify adapter/ --signed-by alice.pub.pem[/bold]"
)
_NOT_CHECKED = 1


def verify(
    delta: Annotated[Path, typer.Argument(metavar="DELTA", help="The file to check.")],
    base: Annotated[
        Path | None, typer.Option("--base", "-b", help="Weights to compare with the digest of every changed parameter.")
    ] = None,
    base_key: Annotated[
        str | None, typer.Option(help="Which of several sets of weights in the base, such as state_dict_ema.")
    ] = None,
    signed_by: Annotated[
        list[Path] | None,
        typer.Option(
            help="A public key, or the issuer's certificate; may be repeated. One of them must have signed DELTA."
        ),
    ] = None,
    allow_class: AllowClass = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check a delta's digest and structure, and with --base that it was made from these weights.

    A digest detects damage, not tampering: whoever changes a file can change its digest. Use --signed-by for that.

    With --base, the exit code is 1 if the delta has no digests of its base, because the base cannot be verified then.
    """
    from rst.delta.sparse_delta import SparseDelta
    from rst.live.signature import check_signature
    from rst.operations.merge import rehearse

    place = local_delta(delta, whole=bool(signed_by))
    signer = check_signature(place, signed_by) if signed_by else None
    change = SparseDelta.load(place)
    if base:
        with byte_progress("checking") as on_progress:
            rehearse(local_weights(base), change, key=base_key, on_progress=on_progress)
    proven = sum(parameter.base is not None for parameter in change.values())
    unchecked = base is not None and proven < len(change)
    if as_json:
        print_json(
            {
                "ok": not unchecked,
                "delta": str(delta),
                "base": str(base) if base else None,
                "parameters": len(change),
                "stored_whole": len(change.dense),
                "base_digests": proven,
                "signed_by": str(signer) if signer else None,
            }
        )
        raise typer.Exit(_NOT_CHECKED if unchecked else 0)
    say(f"{delta}: intact, {len(change):,} parameters, {len(change.dense):,} tensors stored whole")
    if signer:
        say(f"{delta}: all files are as the key {signer} signed them")
    if unchecked:
        say(
            f"{base}: names, shapes and dtypes fit; not checked further, because the delta has digests of its base "
            f"for "
            f"{proven:,} of {len(change):,} changed parameters"
        )
        raise typer.Exit(_NOT_CHECKED)
    if base:
        say(f"{base}: is the delta's base, by the digests of all {len(change):,} changed parameters")

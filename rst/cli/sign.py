"""`rst sign`: sign an adapter, so that others can check who made it."""

import os
from pathlib import Path
from typing import Annotated

import typer

from rst.cli.console import print_json, say
from rst.cli.output_paths import OutputError

EXAMPLE = "Example: [bold]rst sign adapter/ --key private.pem[/bold], checked by [bold]rst verify --signed-by[/bold]"


def sign(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="An adapter's folder, or a delta's file.")],
    key: Annotated[Path, typer.Option("--key", help="An elliptic-curve private key, in PEM format.")],
    password: Annotated[
        str | None, typer.Option(envvar="RST_KEY_PASSWORD", help="The key's password, if it has one.", show_envvar=True)
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="The key's certificate in PEM format, for those who trust its issuer.")
    ] = None,
    chain: Annotated[
        list[Path] | None, typer.Option(help="A certificate between the key's and the issuer's own; may be repeated.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a signature that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Sign all files of ADAPTER with OpenSSF's model-signing, whose own command can also write and verify
    signatures."""
    from rst.live.signature import sign as sign_adapter
    from rst.live.signature import signature_of

    if not force and os.path.lexists(present := signature_of(adapter)):
        raise OutputError("exists; replace it with --force", file=present)
    written = sign_adapter(adapter, key, password=password, certificate=certificate, chain=chain or ())
    if as_json:
        print_json({"adapter": str(adapter), "signature": str(written)})
    else:
        say(f"wrote {written}; check it with: rst verify {adapter} --signed-by PUBLIC_KEY")

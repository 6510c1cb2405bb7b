"""The option `--allow-class` of every command that reads checkpoints."""

from typing import Annotated

import typer


def _allow(context: typer.Context, names: list[str] | None) -> list[str] | None:
    """Allow the classes until the command ends."""
    if names and not context.resilient_parsing:
        from rst.checkpoints.allowed_classes import allowing

        context.with_resource(allowing(names))
    return names


AllowClass = Annotated[
    list[str] | None,
    typer.Option(
        callback=_allow,
        metavar="NAME",
        help="Allow this class in pickles: argparse.Namespace, a path of pathlib, numpy.dtype; may be repeated.",
    ),
]

"""Options of the commands that compare a base with tuned weights."""

from typing import Annotated

import typer

Exclude = Annotated[list[str] | None, typer.Option(help="A module that keeps the base's weights; may be repeated.")]
TunedKey = Annotated[
    str | None, typer.Option(help="Which of several sets of weights in TUNED, such as state_dict_ema.")
]

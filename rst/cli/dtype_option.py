"""The option `--dtype` of commands that cast: the only step whose result is not exact bit for bit."""

from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import torch


class FloatDtype(str, Enum):
    """Dtypes of residuals, defined here so that the choices do not import torch."""

    FLOAT64 = "float64"
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"

    @property
    def in_torch(self) -> "torch.dtype":
        """Return the torch dtype."""
        import torch

        found: torch.dtype = getattr(torch, self.value)
        return found


CastDelta = Annotated[
    FloatDtype | None, typer.Option("--dtype", help="Cast DELTA for a base of this dtype: close, but not bit for bit.")
]
CastTuned = Annotated[
    FloatDtype | None,
    typer.Option("--dtype", help="Cast TUNED first, for a base of this dtype; this rounds each weight."),
]

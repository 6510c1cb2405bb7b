"""`--dtype`, of commands that cast: the one step at which the result is no longer exact bit for bit."""

from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import torch


class FloatDtype(str, Enum):
    """Dtypes that residuals have; the choices are known before torch is imported."""

    FLOAT64 = "float64"
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"

    @property
    def in_torch(self) -> "torch.dtype":
        """As torch has it."""
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

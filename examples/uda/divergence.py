"""Detecting divergence: the loss or weights of a run are no longer finite, so more iterations are useless."""

import torch
from accelerate import Accelerator
from torch import Tensor

from cmkd import Student


class DivergedError(ArithmeticError):
    """A loss or a weight is not finite.

    Attributes:
        iteration: iterations done before.
    """

    def __init__(self, what: str, iteration: int) -> None:
        """Name what is not finite, and after how many iterations."""
        super().__init__(f"{what} is not finite after {iteration} iterations")
        self.iteration = iteration


def check_loss(total: Tensor, iteration: int, accelerator: Accelerator) -> None:
    """Raise `DivergedError`, in all processes if in one, where a phase's loss (0-d) is not finite."""
    if not accelerator.reduce(total.detach(), "sum").isfinite():
        raise DivergedError("the loss", iteration)


@torch.no_grad()
def check_weights(student: Student, iteration: int) -> None:
    """Raise `DivergedError` naming the first of the student's weights or statistics that is not finite."""
    for name, tensor in student.state_dict().items():
        if not tensor.isfinite().all():
            raise DivergedError(name, iteration)

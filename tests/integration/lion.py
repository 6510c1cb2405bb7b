"""Lion (Chen et al., 2023), which moves every weight by exactly its learning rate: the hardest case for a selection."""

from collections.abc import Iterable

import torch
from torch import Tensor


class Lion(torch.optim.Optimizer):
    """The sign of an average of gradients, without weight decay."""

    def __init__(self, parameters: Iterable[Tensor], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                average = self.state[weight].setdefault("average", torch.zeros_like(weight))
                weight.sub_(torch.lerp(average, weight.grad, 0.1).sign_(), alpha=group["lr"])
                average.lerp_(weight.grad, 0.01)

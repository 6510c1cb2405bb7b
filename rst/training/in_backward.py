"""Optimiser steps inside the backward pass: each gradient is used and freed as soon as it is complete.

A single optimiser holds all parameters, so learning rate schedules and `state_dict` work as usual; for the step of one
parameter it sees that parameter alone. An elementwise optimiser computes the same bits this way.
"""

from collections.abc import Callable, Iterable, Mapping
from threading import Lock

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rst.errors import ConfigError
from rst.training.base_weights import BaseWeights
from rst.training.optimizer_steps import only


class InBackward:
    """The hooks on all parameters of one optimiser."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        sparse: Mapping[str, nn.Parameter],
        accumulate: int,
        base: BaseWeights,
        select: Callable[[Iterable[str]], None],
    ) -> None:
        """Watch every parameter of the optimiser.

        Args:
            optimizer: holds all trained parameters.
            sparse: the sparsely trained parameters, by name.
            accumulate: backward passes per step.
            base: w0 of the sparse parameters, of which one copy at a time is made.
            select: selects from the named parameters, as after the step in progress.
        """
        self._optimizer, self._accumulate, self._base, self._select = optimizer, accumulate, base, select
        self._names = {weight: name for name, weight in sparse.items()}
        self._passes: dict[Tensor, int] = {}
        self._lock = Lock()  # the backward pass has one thread per device
        self._done: set[str] = set()
        self.steps_alone = False
        trained = [weight for group in optimizer.param_groups for weight in group["params"]]
        self._handles: list[RemovableHandle] = [
            weight.register_post_accumulate_grad_hook(self._after_accumulation) for weight in trained
        ]

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def waiting(self) -> list[str]:
        """Return the parameters that `optimizer.step()` will step: those with fewer gradients than passes."""
        return [name for weight, name in self._names.items() if weight.grad is not None]

    def finish(self) -> list[str]:
        """End the step, and return the parameters that have not been selected from in it."""
        left = [name for name in self._names.values() if name not in self._done]
        self._done.clear()
        self._passes.clear()
        return left

    @torch.no_grad()
    def _after_accumulation(self, weight: Tensor) -> None:
        with self._lock:
            passes = self._passes[weight] = self._passes.get(weight, 0) + 1
            name = self._names.get(weight)  # type: ignore[call-overload]
            if passes > self._accumulate:
                raise ConfigError(
                    f"backward pass {passes} of a step of {self._accumulate}; call optimizer.step() after each "
                    f"{self._accumulate}, or attach_in_backward(..., accumulate={passes})",
                    parameter=name,
                )
            if passes == self._accumulate:
                self._step(weight, name)

    def _step(self, weight: Tensor, name: str | None) -> None:
        if name is not None:
            self._base.take([name])
        self._step_alone(weight)
        weight.grad = None
        if name is not None:
            self._select([name])
            self._base.settle([name])
            self._done.add(name)

    def _step_alone(self, weight: Tensor) -> None:
        self.steps_alone = True
        try:
            with only(self._optimizer, [weight]):
                self._optimizer.step()
        finally:
            self.steps_alone = False

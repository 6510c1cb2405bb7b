"""The weights with the largest gradients, found with one layer's gradients in memory at a time."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from rst.errors import ConfigError
from rst.naming import unwrap
from rst.numerics.places import read_at
from rst.training.largest import Largest

# The first batch alone decides on so many times the weights that are wanted.
_CANDIDATES = 4


def strongest(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    batches: Iterable[Any],
    budget: int,
    loss: Callable[[Any], Tensor],
    times_weight: bool,
) -> dict[str, Tensor]:
    """Positions by name; see `Support.from_gradients`."""
    plan = iter(batches)
    with _alone(unwrap(model), parameters):
        try:
            first = next(plan)
        except StopIteration:
            raise ConfigError("there is no batch to take gradients from") from None
        second = next(plan, None)
        largest = Largest(budget if second is None else _CANDIDATES * budget)

        def rank(name: str, weight: Tensor, gradient: Tensor) -> None:
            largest.add(name, (gradient * weight.detach() if times_weight else gradient).abs())

        with _gradients(parameters, rank):
            loss(first).backward()  # type: ignore[no-untyped-call]
        if second is None:
            return largest.positions()
        places = largest.positions()
        sums = {name: torch.zeros(found.numel(), dtype=torch.float32) for name, found in places.items()}

        def add(name: str, weight: Tensor, gradient: Tensor) -> None:
            if name in places:
                sums[name] += read_at(gradient, places[name].to(gradient.device)).float().cpu()

        with _gradients(parameters, add):
            for batch in chain((first, second), plan):
                loss(batch).backward()  # type: ignore[no-untyped-call]
    final = Largest(budget)
    for name, found in places.items():
        weight = read_at(parameters[name], found.to(parameters[name].device)).float().cpu() if times_weight else 1.0
        final.add(name, (sums[name] * weight).abs())
    return {name: places[name][chosen] for name, chosen in final.positions().items()}


@contextmanager
def _gradients(parameters: Mapping[str, nn.Parameter], look: Callable[[str, Tensor, Tensor], None]) -> Iterator[None]:
    """Show each gradient, once it is complete, to `look`, and drop it."""

    def hook_of(name: str) -> Callable[[Tensor], None]:
        @torch.no_grad()
        def hook(weight: Tensor) -> None:
            gradient = weight.grad
            assert gradient is not None
            weight.grad = None
            look(name, weight, gradient.to_dense() if gradient.is_sparse else gradient)

        return hook

    handles = [weight.register_post_accumulate_grad_hook(hook_of(name)) for name, weight in parameters.items()]  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _alone(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Have gradients for `parameters` only, and every buffer back afterwards: BatchNorm counts each forward."""
    wanted = {id(weight) for weight in parameters.values()}
    others = [weight for weight in model.parameters() if id(weight) not in wanted and weight.requires_grad]
    for weight in parameters.values():
        if weight.grad is not None:
            raise ConfigError("the model has gradients already; zero_grad() first")
    before = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    for weight in others:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in others:
            weight.requires_grad_(True)
        with torch.no_grad():
            for buffer, was in before:
                buffer.copy_(was)

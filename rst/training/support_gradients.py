"""The weights with the largest gradients, found with one layer's gradients in memory at a time."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rst.errors import ConfigError
from rst.naming import unwrap
from rst.numerics.places import read_at, write_at_

# The first batch selects this many times the number of weights needed.
_CANDIDATES = 4


class Ranking(Protocol):
    """Keeps the largest of the scores it is given: `Largest`, or `LargestOfEach`."""

    def add(self, name: str, scores: Tensor) -> None:
        """Consider the scores of one parameter."""
        ...

    def positions(self) -> dict[str, Tensor]:
        """Return the positions of the largest scores, by name."""
        ...


def strongest(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    batches: Iterable[Any],
    ranking: Callable[[int], Ranking],
    loss: Callable[[Any], Tensor],
    *,
    times_weight: bool = False,
    taken: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return positions by name; see `Support.from_gradients`.

    Args:
        model: the module that has the parameters.
        parameters: the parameters to consider.
        batches: at least one.
        ranking: creates a ranking that keeps the given multiple of the number of weights needed.
        loss: computes the loss of a batch.
        times_weight: rank by gradient times weight.
        taken: positions that must not be chosen, by name.

    Raises:
        ConfigError: there is no batch, or there are gradients already.
    """
    plan, taken = iter(batches), taken or {}
    with _alone(unwrap(model), parameters):
        try:
            first = next(plan)
        except StopIteration:
            raise ConfigError("there is no batch to compute gradients from") from None
        second = next(plan, None)
        largest = ranking(1 if second is None else _CANDIDATES)

        def rank(name: str, weight: Tensor, gradient: Tensor) -> None:
            scores = (gradient * weight.detach() if times_weight else gradient).abs()
            if name in taken:
                write_at_(scores, taken[name].to(scores.device), scores.new_zeros(taken[name].numel()))
            largest.add(name, scores)

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
    final = ranking(1)
    for name, found in places.items():
        weight = read_at(parameters[name], found.to(parameters[name].device)).float().cpu() if times_weight else 1.0
        final.add(name, (sums[name] * weight).abs())
    return {name: places[name][chosen] for name, chosen in final.positions().items()}


@contextmanager
def _gradients(parameters: Mapping[str, nn.Parameter], look: Callable[[str, Tensor, Tensor], None]) -> Iterator[None]:
    """Pass each gradient to `look` once it is complete, and drop it."""

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
    """Compute gradients for `parameters` only, and restore all buffers afterwards: BatchNorm changes them."""
    wanted = {id(weight) for weight in parameters.values()}
    found = [(weight, weight.requires_grad) for weight in model.parameters()]
    for weight in parameters.values():
        if weight.grad is not None:
            raise ConfigError("the model already has gradients; call zero_grad() first")
    before = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    for weight, _ in found:
        weight.requires_grad_(id(weight) in wanted)
    try:
        yield
    finally:
        for weight, trains in found:
            weight.requires_grad_(trains)
        with torch.no_grad():
            for buffer, was in before:
                buffer.copy_(was)

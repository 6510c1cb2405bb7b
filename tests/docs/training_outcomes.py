"""What the training in a documentation's block came to: weights have moved, as many as the block asks for."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rst import ResidualSparseTrainer

TRAIN_AS_ALWAYS = "...  # train as always"
"""What a block says where its reader has a training loop."""

_TRAINS = re.compile(r"\boptimizer\.step\(|\btrainer\.train\(|\btrainer\.fit\(|\btrainer\.attach\(")


def train_as_always(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor) -> None:
    """Some steps towards zero."""
    for _ in range(5):
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()


def trains(code: str) -> bool:
    """Whether a block of code trains, or says that it does."""
    return bool(_TRAINS.search(re.sub(r"#.*", "", code)))


def check_outcomes(code: str, namespace: Mapping[str, Any]) -> None:
    """Fail unless the trainers that a block left in its namespace changed some weights, and about as many as asked.

    Args:
        code: of the block, which trains.
        namespace: after it ran.
    """
    trainers = [trainer for name in _words(code) for trainer in _trainers(namespace.get(name))]
    for trainer in trainers:
        status = trainer.status()
        assert status.steps, "the trainer saw no step"
        assert status.kept > 0, f"{status}: nothing was trained"
        if status.target is not None:
            wanted = status.target * status.weights
            assert abs(status.kept - wanted) <= max(0.1 * wanted, 1), f"{status}: far from the share that was asked for"


def _words(code: str) -> list[str]:
    return sorted({*re.findall(r"[A-Za-z_]\w*", code)})


def _trainers(value: Any) -> Iterator[ResidualSparseTrainer]:
    """The trainer itself, or that of a callback or an `RSTModel`."""
    if isinstance(value, ResidualSparseTrainer):
        yield value
    elif type(value).__module__.startswith("rst."):
        inner = getattr(value, "trainer", None)
        if isinstance(inner, ResidualSparseTrainer):
            yield inner

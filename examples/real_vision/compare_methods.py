"""Accuracy of every way to adapt the encoder, on every domain."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from examples.real_vision.compare_rules import SEEDS, accuracies
from examples.real_vision.few_shot import few_shot
from examples.real_vision.methods import METHODS
from examples.real_vision.network import base_model, encoder_weights
from examples.real_vision.resuming import Run, carry_out, read

DOMAINS = ("S", "A", "C")


@dataclass(frozen=True)
class MethodRun(Run):
    """One training run."""

    method: str
    rate: float
    domain: str
    seed: int

    @property
    def key(self) -> str:
        """Its name among the results."""
        return f"{self.method} {self.rate:g} {self.domain} {self.seed}"


def train(run: MethodRun, root: Path) -> dict[str, float | int]:
    """Fine-tune the base on a few images; returns accuracies, and how many weights of the encoder were trained."""
    torch.manual_seed(run.seed)
    data = few_shot(root, run.domain, run.seed)
    model = base_model(root)
    weights = encoder_weights(model)  # LoRA adds to the model
    trained = METHODS[run.method].train(model, run.rate, data.train).trained
    return {**accuracies(model, data), "trained": trained, "share": trained / weights}


def compare(root: Path, results: Path) -> None:
    """Run what is not done yet: first the choice of each method's rate, then all seeds and domains."""
    carry_out(runs(results), partial(train, root=root), results)


def runs(results: Path) -> Iterator[MethodRun]:
    """Every run in order. The rates that seed 0 on the first domain is best with are those of all others."""
    for name, candidate in METHODS.items():
        for rate in candidate.rates:
            yield MethodRun(name, rate, DOMAINS[0], 0)
    for domain in DOMAINS:
        for seed in range(SEEDS):
            for method in METHODS:
                yield MethodRun(method, chosen_rate(method, read(results)), domain, seed)


def chosen_rate(method: str, done: Mapping[str, Mapping[str, Any]]) -> float:
    """The rate of lowest validation loss in the search."""
    return min(
        METHODS[method].rates, key=lambda rate: done[MethodRun(method, rate, DOMAINS[0], 0).key]["validation_loss"]
    )

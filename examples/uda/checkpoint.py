"""Stop and go on: everything a run needs to end, bit for bit, as if it had not been stopped."""

import random
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from cmkd import Objective, Student
from examples.uda.evaluation import Scores
from rst import ResidualSparseTrainer


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        iteration: iterations done.
        curve: a point an evaluation: iteration, accuracy, per_class, validators, mean losses since the last one.
        seconds: spent so far, interruptions not counted.
    """

    iteration: int = 0
    curve: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        """Begin to sum losses."""
        self._losses: dict[str, list[Tensor]] = {}

    def add_losses(self, terms: dict[str, Tensor]) -> None:
        """Remember the terms of one phase."""
        for name, value in terms.items():
            self._losses.setdefault(name, []).append(value.detach())

    def add_scores(self, iteration: int, scores: Scores, *, seconds: float) -> None:
        """Add a point to the curve."""
        losses = {name: torch.stack(values).mean().item() for name, values in self._losses.items()}
        self._losses.clear()
        self.curve.append({"iteration": iteration, **asdict(scores), "losses": losses})
        self.iteration, self.seconds = iteration, seconds


class Checkpoint:
    """One file with the state of everything that changes during training.

    Where an image stands in the walk over its domain and how it is augmented follow from seed and iteration, so the
    data need no state. With several processes it holds the main one's.
    """

    def __init__(
        self,
        path: Path,
        student: Student,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        trainer: ResidualSparseTrainer | None,
        accelerator: Accelerator,
    ) -> None:
        """Know the file and what to keep in it."""
        parts = {"student": student, "objective": objective, "optimizer": optimizer, "trainer": trainer}
        parts["scaler"] = accelerator.scaler
        self.path = path
        self._parts: dict[str, Any] = {name: part for name, part in parts.items() if part is not None}
        self._accelerator = accelerator

    def save(self, progress: Progress) -> None:
        """Write the file whole or not at all."""
        if self._accelerator.is_main_process:
            state = {name: part.state_dict() for name, part in self._parts.items()}
            unfinished = self.path.with_suffix(".tmp")
            torch.save({"progress": asdict(progress), "random": _random_state(), **state}, unfinished)
            unfinished.replace(self.path)
        self._accelerator.wait_for_everyone()

    def load(self) -> Progress:
        """Put everything back as it was; a fresh start where there is no file."""
        if not self.path.exists():
            return Progress()
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        _set_random_state(state["random"])
        return Progress(**state["progress"])


def _random_state() -> dict[str, Any]:
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
    }


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(state["torch"])
    torch.cuda.set_rng_state_all(state["cuda"])

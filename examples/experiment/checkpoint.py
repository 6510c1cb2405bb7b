"""Stopping and resuming a run: on a CPU, it ends bit for bit as if it had not been stopped."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Checkpoint:
    """One file with the state of everything that changes during training, and how far the run has come.

    Which data an iteration sees and how they are augmented follow from seed and iteration: they need no state.
    """

    def __init__(self, path: Path, **parts: Any) -> None:
        """Know the file and the objects with a `state_dict`; those that are None are left out."""
        self.path = path
        self._parts = {name: part for name, part in parts.items() if part is not None}

    def save(self, progress: dict[str, Any]) -> None:
        """Write the file whole or not at all."""
        states = {name: part.state_dict() for name, part in self._parts.items()}
        unfinished = self.path.with_suffix(".tmp")
        torch.save({"progress": progress, **states}, unfinished)
        unfinished.replace(self.path)

    def load(self) -> dict[str, Any]:
        """Put every part back as it was, and return the progress; empty, a fresh start, where there is no file."""
        if not self.path.exists():
            return {}
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        progress: dict[str, Any] = state["progress"]
        return progress


class RandomState:
    """The global generators of Python, NumPy and torch: a part of checkpoints."""

    def state_dict(self) -> dict[str, Any]:
        """In types that `torch.load` takes with `weights_only`."""
        name, keys, *rest = np.random.get_state(legacy=True)
        return {
            "python": random.getstate(),
            "numpy": [name, np.asarray(keys).tolist(), *rest],
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on drawing from there."""
        random.setstate(state["python"])
        np.random.set_state(tuple(state["numpy"]))
        torch.set_rng_state(state["torch"])
        torch.cuda.set_rng_state_all(state["cuda"])

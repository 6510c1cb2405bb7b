"""The interface of both tasks: a base, training batches, a loss, and a score on unseen text."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from examples.real_language.psalms import Part

Batch = dict[str, Tensor]


class Task(ABC):
    """A model and what it learns."""

    name: str
    metric: str
    """What `score` gives; lower is better."""
    rates: ClassVar[dict[str, tuple[float, ...]]]
    """Learning rates to choose from, by method."""

    @abstractmethod
    def save_base(self, folder: Path) -> None:
        """Write the pretrained model and its tokenizer as transformers reads them."""

    @abstractmethod
    def load(self, folder: Path) -> nn.Module:
        """The model in a folder."""

    @abstractmethod
    def batches(self, folder: Path, seed: int) -> list[Batch]:
        """Training batches in the order in which to use them."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss of one batch, a scalar."""

    @abstractmethod
    def score(self, model: nn.Module, folder: Path, part: Part) -> dict[str, float]:
        """Figures on a part of the text, `metric` among them."""

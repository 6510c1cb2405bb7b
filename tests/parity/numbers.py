"""The originals' numbers, `../shared/parity`: inputs, and what the authors' released code returned for them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.conftest import SHARED_DATA

FOLDER = SHARED_DATA.parent / "parity"

Case = dict[str, Any]
"""Arrays of one case as tensors, floating ones in float64; 0-d ones as Python numbers, flags and strings."""


def read_cases(name: str) -> dict[str, Case]:
    """All cases of one file, by name."""
    found: dict[str, Case] = {}
    with np.load(FOLDER / f"{name}.npz") as arrays:
        for key in arrays.files:
            case, part = key.split(".", 1)
            found.setdefault(case, {})[part] = _value(arrays[key])
    return found


def _value(array: np.ndarray) -> Any:
    if array.ndim == 0:
        return array.item()
    tensor = torch.from_numpy(array)
    return tensor.double() if tensor.is_floating_point() else tensor


def leaf(tensor: Tensor) -> Tensor:
    """A copy that takes a gradient."""
    return tensor.clone().requires_grad_()


@dataclass
class Differences:
    """Relative differences of one case, `max |here - there| / max |there|`, by what was compared.

    `exact` holds what must be equal: the number of entries that are not.
    """

    values: dict[str, float] = field(default_factory=dict)
    gradients: dict[str, float] = field(default_factory=dict)
    exact: dict[str, int] = field(default_factory=dict)

    def value(self, name: str, here: Tensor | float, there: Tensor | float) -> None:
        """Compare a value."""
        self.values[name] = _relative(here, there)

    def gradient(self, name: str, here: Tensor | None, there: Tensor) -> None:
        """Compare a gradient; None is 0."""
        self.gradients[name] = _relative(torch.zeros_like(there) if here is None else here, there)

    def equal(self, name: str, here: Any, there: Any) -> None:
        """Compare what has no tolerance."""
        here, there = torch.as_tensor(here), torch.as_tensor(there)
        self.exact[name] = int((here != there).sum()) if here.shape == there.shape else max(here.numel(), 1)

    def merged(self) -> Iterator[tuple[str, str, float]]:
        """Kind, name and difference of everything."""
        for kind in ("values", "gradients", "exact"):
            for name, difference in getattr(self, kind).items():
                yield kind, name, float(difference)


def _relative(here: Tensor | float, there: Tensor | float) -> float:
    here = torch.as_tensor(here, dtype=torch.float64).detach()
    there = torch.as_tensor(there, dtype=torch.float64).detach()
    assert here.shape == there.shape, f"{tuple(here.shape)} here, {tuple(there.shape)} there"
    largest = there.abs().max()
    return float((here - there).abs().max() / (largest if largest > 0 else 1))


class HandedFeatures(nn.Module):
    """An encoder that hands features over instead of computing them: images are the features."""

    def forward(self, images: Tensor) -> Tensor:
        return images


class HandedLogits(nn.Module):
    """A head that hands over the logits given for a batch of that many features."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, features: Tensor) -> Tensor:
        assert len(features) == len(self.logits)
        return self.logits

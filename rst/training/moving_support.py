"""Moving a support: the kept weights that moved least from w0 make room for those with the largest gradients.

Each parameter keeps as many as it had, so that the tensors that an optimiser trains, and their states, stay the same
ones. What is let go of has w0's bits again; an entry that stays has its value and its states, a new one starts at w0
with states of zero.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from rst.errors import ConfigError
from rst.numerics.kept_places import KeptPlaces
from rst.training.optimizer_steps import optimizers_in


@dataclass(frozen=True)
class Move:
    """Where the entries of one parameter's support go.

    Attributes:
        positions: all of them afterwards, sorted, shape (n,).
        source: which entry each was before; n and more for new ones, shape (n,).
    """

    positions: Tensor
    source: Tensor

    @classmethod
    def plan(cls, places: KeptPlaces, values: Tensor, grown: Tensor) -> "Move":
        """Let go of as many as are `grown`, integers of shape (k,) with none of `places` among them."""
        moved = (values - places.origin.to(values.dtype)).abs()
        stays = moved.argsort(stable=True)[grown.numel() :]
        positions, order = torch.cat([places.positions[stays], grown.to(places.positions)]).sort()
        source = torch.cat([stays, torch.arange(grown.numel(), device=stays.device) + moved.numel()])
        return cls(positions, source[order])

    def apply(self, entries: Tensor, new: Tensor | float) -> Tensor:
        """Entries of shape (n,) in their new order; `new`, a number or of shape (n,), where there was none."""
        count = entries.numel()
        found = entries[self.source.clamp(max=count - 1)]
        return torch.where(self.source < count, found, torch.as_tensor(new, dtype=found.dtype, device=found.device))


def check_states(optimizer: Optimizer, values: Mapping[str, Tensor]) -> None:
    """Raise `ConfigError` for a state that belongs neither to all of a parameter nor to each of its entries."""
    for inner in optimizers_in(optimizer):
        for name, one in values.items():
            for key, state in inner.state.get(one, {}).items():
                shape = tuple(state.shape) if isinstance(state, Tensor) else ()
                if shape not in ((), tuple(one.shape)) or isinstance(state, (list, dict)):
                    raise ConfigError(
                        f"{type(inner).__name__}'s {key!r}, {type(state).__name__} {shape}, is not one entry a weight "
                        f"of {one.numel()}, so it cannot move with them",
                        parameter=name,
                    )


@torch.no_grad()
def move_states_(optimizer: Optimizer, values: Tensor, move: Move) -> None:
    """Move an optimiser's states of one parameter with its entries."""
    for inner in optimizers_in(optimizer):
        for state in inner.state.get(values, {}).values():
            if isinstance(state, Tensor) and state.shape == values.shape:
                state.copy_(move.apply(state, 0.0))

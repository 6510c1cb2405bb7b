"""Moving a support: the kept weights that moved least from w0 are replaced by those with the largest gradients.

Each parameter keeps its number of weights, so that the tensors that an optimiser trains, and their states, stay the
same objects. Dropped weights get w0's bits back; entries that stay keep their value and states; new ones start at w0
with zero states.
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
        source: the previous index of each entry; n or more for new ones, shape (n,).
    """

    positions: Tensor
    source: Tensor

    @classmethod
    def plan(cls, places: KeptPlaces, values: Tensor, grown: Tensor) -> "Move":
        """Plan to drop as many entries as are `grown`: integers of shape (k,), none of them in `places`."""
        moved = (values - places.origin.to(values.dtype)).abs()
        stays = moved.argsort(stable=True)[grown.numel() :]
        positions, order = torch.cat([places.positions[stays], grown.to(places.positions)]).sort()
        source = torch.cat([stays, torch.arange(grown.numel(), device=stays.device) + moved.numel()])
        return cls(positions, source[order])

    def apply(self, entries: Tensor, new: Tensor | float) -> Tensor:
        """Return entries of shape (n,) in their new order, with `new`, a number or of shape (n,), for new entries."""
        count = entries.numel()
        found = entries[self.source.clamp(max=count - 1)]
        return torch.where(self.source < count, found, torch.as_tensor(new, dtype=found.dtype, device=found.device))


def check_states(optimizer: Optimizer, values: Mapping[str, Tensor]) -> None:
    """Raise `ConfigError` for an optimiser state that is neither per parameter nor per entry."""
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

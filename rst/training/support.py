"""The weights to train: positions chosen beforehand, the only ones with optimiser state."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from rst.config import RSTConfig
from rst.delta.parameter_delta import index_dtype
from rst.delta.sparse_delta import SparseDelta
from rst.errors import ConfigError, ParameterMismatchError
from rst.naming import unwrap
from rst.numerics.kept_places import check_positions
from rst.training.largest import Largest
from rst.training.support_gradients import strongest
from rst.training.tracking import track

Loss = Callable[[Any], Tensor]


@dataclass(frozen=True, eq=False)
class Support(Mapping[str, Tensor]):
    """Positions of the weights to train, by parameter.

    >>> support = Support.from_gradients(model, batches, ratio=0.002)
    >>> trainer = ResidualSparseTrainer(model, RSTConfig(select="support"), support=support)
    >>> optimizer = torch.optim.AdamW(trainer.parameters(), lr=1e-4)
    >>> trainer.attach(optimizer)

    Attributes:
        positions: flat row-major positions by name, sorted and unique, int32 (int64 where numel >= 2^31), shape (n,),
            on the CPU; names without positions are left out.
        shapes: the parameters' shapes.
        origins: w0 there, if the model to train no longer has it, of shape (n,).
    """

    positions: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]]
    origins: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the positions. Raises `ParameterMismatchError`."""
        for name, found in self.positions.items():
            check_positions(name, found, torch.Size(self.shapes[name]).numel())

    def __getitem__(self, name: str) -> Tensor:
        """Return the positions in one parameter."""
        return self.positions[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self.positions)

    def __len__(self) -> int:
        """Return the number of parameters."""
        return len(self.positions)

    def __repr__(self) -> str:
        """Show sizes, not positions."""
        return f"Support({self.nnz} weights of {len(self)} parameters)"

    @property
    def nnz(self) -> int:
        """Number of weights to train."""
        return sum(found.numel() for found in self.positions.values())

    @classmethod
    def at(
        cls,
        positions: Mapping[str, Tensor],
        shapes: Mapping[str, tuple[int, ...]],
        origins: Mapping[str, Tensor] | None = None,
    ) -> "Support":
        """Sort positions given in any order, and leave out parameters without any.

        Raises:
            ParameterMismatchError: a position is out of range or occurs twice.
        """
        found, base = {}, {}
        for name, places in positions.items():
            if places.is_floating_point():
                raise ParameterMismatchError(f"positions are {places.dtype}, not integers", parameter=name)
            if places.numel():
                ordered, order = places.detach().cpu().sort()
                found[name] = ordered.to(index_dtype(torch.Size(shapes[name]).numel()))
                if origins is not None:
                    base[name] = origins[name].detach().cpu()[order]
        return cls(found, {name: tuple(shapes[name]) for name in found}, base)

    @classmethod
    def random(cls, model: nn.Module, ratio: float, *, seed: int = 0, config: RSTConfig | None = None) -> "Support":
        """Draw a share of each parameter's weights at random, as SHiRA does. The same on every machine.

        Args:
            model: the pretrained model, possibly wrapped.
            ratio: share of all weights that `config` trains, in (0, 1].
            seed: seed of the draw.
            config: determines the parameters by its patterns.

        Raises:
            ConfigError: the ratio is out of range, or keeps nothing.
        """
        return cls.random_in(_shapes(_parameters(model, config)), ratio, seed=seed)

    @classmethod
    def random_in(cls, shapes: Mapping[str, tuple[int, ...]], ratio: float, *, seed: int = 0) -> "Support":
        """Do what `random` does for parameters of these shapes, by name. Raises as `random`."""
        _budget(shapes, ratio)
        generator = torch.Generator().manual_seed(seed)
        positions, seen = {}, 0
        for name, shape in shapes.items():
            numel = prod(shape)
            before, seen = round(ratio * seen), seen + numel
            positions[name] = _draw(numel, round(ratio * seen) - before, generator)
        return cls.at(positions, shapes)

    @classmethod
    def from_magnitude(cls, model: nn.Module, ratio: float, *, config: RSTConfig | None = None) -> "Support":
        """Choose the weights of largest magnitude.

        Args:
            model: as `random`.
            ratio: as `random`.
            config: as `random`.

        Raises:
            ConfigError: as `random`.
        """
        parameters = _parameters(model, config)
        largest = Largest(_budget(_shapes(parameters), ratio))
        for name, weight in parameters.items():
            largest.add(name, weight.detach().abs())
        return cls.at(largest.positions(), _shapes(parameters))

    @classmethod
    def from_gradients(
        cls,
        model: nn.Module,
        batches: Iterable[Any],
        ratio: float,
        *,
        loss: Loss | None = None,
        times_weight: bool = False,
        config: RSTConfig | None = None,
    ) -> "Support":
        """Choose the weights whose gradient, summed over some batches, is largest.

        Gradients are in memory one layer at a time. Of several batches, the first selects four times as many weights as
        needed, and the gradients of the others are summed at those only. The weights and buffers do not change.

        Args:
            model: as `random`, in the mode (`train` or `eval`) of the training, without gradients.
            batches: at least one.
            ratio: as `random`.
            loss: computes the loss of a batch; `model(**batch).loss` by default.
            times_weight: rank by gradient times weight.
            config: as `random`.

        Raises:
            ConfigError: as `random`, or there is no batch.
        """
        parameters = _parameters(model, config)
        budget = _budget(_shapes(parameters), ratio)
        found = strongest(
            model,
            parameters,
            batches,
            lambda times: Largest(times * budget),
            loss or loss_of(model),
            times_weight=times_weight,
        )
        return cls.at(found, _shapes(parameters))

    @classmethod
    def from_delta(cls, delta: SparseDelta) -> "Support":
        """Choose the weights that a delta changes, to continue training them or to train another task there."""
        positions = {name: change.indices for name, change in delta.items()}
        return cls.at(positions, {name: tuple(change.shape) for name, change in delta.items()})


def loss_of(model: nn.Module) -> Loss:
    """Return a function that computes the model's own loss of a batch of keyword arguments."""
    return lambda batch: model(**batch).loss


def _parameters(model: nn.Module, config: RSTConfig | None) -> Mapping[str, nn.Parameter]:
    return track(unwrap(model), config or RSTConfig()).sparse


def _shapes(parameters: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in parameters.items()}


def _budget(shapes: Mapping[str, tuple[int, ...]], ratio: float) -> int:
    total = sum(map(prod, shapes.values()))
    if not 0 < ratio <= 1:
        raise ConfigError(f"ratio={ratio}: must be a fraction in (0, 1]; 0.2 % is 0.002")
    if not round(ratio * total):
        raise ConfigError(f"ratio={ratio} of {total} weights rounds to no weight")
    return round(ratio * total)


def _draw(numel: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` distinct positions below `numel` without permuting all of them."""
    if 4 * count >= numel:
        return torch.randperm(numel, generator=generator)[:count]
    drawn = torch.empty(0, dtype=torch.int64)
    while drawn.numel() < count:
        more = torch.randint(numel, (count + count // 8 + 8,), generator=generator)
        drawn = torch.unique(torch.cat([drawn, more]))
    return drawn[torch.randperm(drawn.numel(), generator=generator)[:count]]

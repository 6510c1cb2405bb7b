"""Which weights are trained: positions chosen beforehand, whose optimiser state is all there is."""

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
            on the CPU; no name without any.
        shapes: the parameters' shapes.
        origins: w0 there, where the model to train no longer has it, of shape (n,).
    """

    positions: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]]
    origins: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse positions that are none. Raises `ParameterMismatchError`."""
        for name, found in self.positions.items():
            check_positions(name, found, torch.Size(self.shapes[name]).numel())

    def __getitem__(self, name: str) -> Tensor:
        """Positions in one parameter."""
        return self.positions[name]

    def __iter__(self) -> Iterator[str]:
        """Names."""
        return iter(self.positions)

    def __len__(self) -> int:
        """Number of parameters."""
        return len(self.positions)

    def __repr__(self) -> str:
        """Sizes, not the positions."""
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
            ParameterMismatchError: a position is out of range, or there twice.
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
        """Draw a share of each parameter's weights, as SHiRA does. The same on every machine.

        Args:
            model: the pretrained one, possibly wrapped.
            ratio: share of all weights that `config` trains, in (0, 1].
            seed: of the draw.
            config: which parameters: its patterns count.

        Raises:
            ConfigError: the ratio is out of range, or keeps nothing.
        """
        return cls.random_in(_shapes(_parameters(model, config)), ratio, seed=seed)

    @classmethod
    def random_in(cls, shapes: Mapping[str, tuple[int, ...]], ratio: float, *, seed: int = 0) -> "Support":
        """`random`, of parameters of these shapes by name. Raises as it does."""
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
        """The share of the weights that are largest.

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
        """The share of the weights whose gradient, summed over some batches, is largest.

        Gradients are there one layer at a time. Of several batches the first decides on four times as many weights as
        are wanted, and the gradients of the others are summed at those only. The weights and buffers stay as they are.

        Args:
            model: as `random`, in the mode (`train` or `eval`) to be trained in, with no gradients.
            batches: at least one.
            ratio: as `random`.
            loss: gives the loss of a batch; if left out, `model(**batch).loss`.
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
        """The weights that a delta changes, to go on training them or to train another task there."""
        positions = {name: change.indices for name, change in delta.items()}
        return cls.at(positions, {name: tuple(change.shape) for name, change in delta.items()})


def loss_of(model: nn.Module) -> Loss:
    """The loss that a model returns itself, of a batch that is its arguments by name."""
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
    """`count` different positions below `numel`, without a permutation of all."""
    if 4 * count >= numel:
        return torch.randperm(numel, generator=generator)[:count]
    drawn = torch.empty(0, dtype=torch.int64)
    while drawn.numel() < count:
        more = torch.randint(numel, (count + count // 8 + 8,), generator=generator)
        drawn = torch.unique(torch.cat([drawn, more]))
    return drawn[torch.randperm(drawn.numel(), generator=generator)[:count]]

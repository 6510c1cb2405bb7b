"""w0 kept only where the weight differs from it, which after a selection is hardly anywhere.

A copy of w0 is there while the weights are away from what was selected: taken before an optimiser's step, dropped after
the selection that follows. In between, `KeptPlaces` give w0 back bit for bit.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from rst.config import BaseStorage
from rst.delta.parameter_delta import check_like, index_dtype
from rst.errors import ConfigError
from rst.numerics.checksum import Checksum, checksum
from rst.numerics.difference import changed_positions
from rst.numerics.exactness import bits, is_plain
from rst.numerics.kept_places import KeptPlaces
from rst.numerics.places import read_at, write_at_
from rst.shards.blocks import local
from rst.training.base_weights import BaseWeights
from rst.training.tracking import TrackedTensors


class SparseBaseWeights(BaseWeights):
    """Pretrained weights by name, some as copies, some as `KeptPlaces`.

    A weight that is written to while there is no copy takes its w0 along. torch counts writes, so the next reader is
    told.
    """

    def __init__(
        self,
        copied: Mapping[str, Tensor],
        live: Mapping[str, Tensor],
        thin: Iterable[str] = (),
        *,
        fixed: Iterable[str] = (),
    ) -> None:
        """Copy some weights, and count on the others to be as they are until `take`.

        Args:
            copied: what is copied, by name.
            live: the model's parameters by name, of which `thin` may name any; DTensors count by their part here.
            thin: those that are now w0 and of which no copy is made yet.
            fixed: those of which none is ever made: they move at places that `replace` tells.
        """
        super().__init__(copied, "device")
        self.copies = self._copies
        self.attached: str | None = None
        """The optimiser that trains, by its class, while there is one."""
        self._fixed = frozenset(fixed)
        self._live = live
        self._places: dict[str, KeptPlaces] = {}
        self._writes: dict[str, int | None] = {}  # None: as many as there will be at the next look
        known = {name: local(weight) for name, weight in live.items()} | dict(copied)
        self.outlines = {  # not every layout has one without values
            name: torch.empty_like(tensor, device="meta") if is_plain(tensor) else self.copies[name]
            for name, tensor in known.items()
        }
        self.sums: dict[str, Checksum | None] = {}
        self._thin = dict.fromkeys(thin)
        for name in self._thin | dict.fromkeys(self._fixed):
            weight = local(live[name])
            nowhere = torch.empty(0, dtype=index_dtype(weight.numel()), device=weight.device)
            if name in self._thin:
                self.sums[name] = checksum(weight)
            self.replace(name, KeptPlaces(nowhere, read_at(weight, nowhere)))

    def __getitem__(self, name: str) -> Tensor:
        """w0 of one parameter: the copy, or a fresh tensor where there is none. Raises as `on_device_of`."""
        return self.copies[name] if name in self.copies else self._built(name)

    def __iter__(self) -> Iterator[str]:
        """Names."""
        return iter({**self.copies, **self._places})

    def __len__(self) -> int:
        """Number of tensors."""
        return len({**self.copies, **self._places})

    @property
    def names_of_parameters(self) -> Iterable[str]:
        """Names of what is no buffer."""
        return self._live.keys()

    @property
    def places(self) -> Mapping[str, KeptPlaces]:
        """What stands in for w0, of the parameters without a copy."""
        return self._places

    def replace(self, name: str, places: KeptPlaces, *, restored_later: bool = False) -> None:
        """Have other places stand in for w0 of a parameter; its weight may still have to be restored to fit them."""
        self._places[name] = places
        self._trust(name)
        if restored_later:
            self._writes[name] = None
            self.sums.pop(name, None)

    def on_device_of(self, live: Mapping[str, Tensor], *, move: bool = True) -> Mapping[str, Tensor]:
        """View of w0, each tensor copied to the device of its live weight, or built from it, when it is asked for.

        It is there, whatever `move` says.
        Asking raises `ParameterMismatchError` if the weight's shape or dtype has changed since, and `ConfigError` if it
        was written to since its w0 was last known.
        """
        return _BuiltFrom(live, self)

    def is_known(self, name: str, weight: Tensor) -> bool:
        """Whether nobody wrote to a weight without a copy, its live one, behind our back."""
        return self._writes[name] in (None, weight._version)

    def check(self, name: str, weight: Tensor) -> None:
        """Refuse a weight whose w0 is no longer known. Raises as `on_device_of`."""
        check_like(name, weight, self.outlines[name])
        if not self.is_known(name, weight):
            raise self.lost(name, weight)

    def lost(self, name: str, weight: Tensor) -> ConfigError:
        """What to say of a weight whose w0 is not known."""
        writes = weight._version - (self._writes[name] or 0)
        if name in self._fixed:
            advice = "with a support, write to trainer.parameters() instead, then call trainer.select()"
        elif self.attached:
            advice = (
                'keep a copy of w0 with RSTConfig(base_storage="device"), which allows averaged and restored weights; '
                f"or, if an optimiser that wraps this {self.attached} wrote it, attach that one"
            )
        else:
            advice = (
                "call trainer.attach(optimizer) before training, or keep a copy of w0 with "
                'RSTConfig(base_storage="device")'
            )
        which = (
            f"outside the attached optimiser's step ({self.attached})"
            if self.attached
            else "with no optimiser attached"
        )
        return ConfigError(f"written to {writes} times {which}, so its w0 is lost; {advice}", parameter=name)

    def overwritten(self, name: str) -> ConfigError:
        """What to say of a weight that has other values than the last step left."""
        return ConfigError(
            "written to outside the attached optimiser's step (through .data?), so its w0 is lost; if weights "
            "are clamped, averaged or swapped between steps, keep a copy of w0: "
            'RSTConfig(base_storage="device")',
            parameter=name,
        )

    def load(self, copies: Mapping[str, Tensor]) -> None:
        """Have another w0; the weights may be restored before or after. Where places are for good, they stay."""
        for name in self.copies.keys() | self._thin.keys():
            self._places.pop(name, None)
            self.copies[name] = copies[name].detach().clone()
            self.sums[name] = checksum(self.copies[name])

    def thin(self, names: Iterable[str]) -> None:
        """From now on keep w0 of these only where their weights differ from it."""
        added = [name for name in names if name not in self._thin]
        self.sums |= {name: checksum(self[name]) for name in added}
        self._thin |= dict.fromkeys(added)
        self.settle()

    def thicken(self) -> None:
        """From now on keep copies, of all whose w0 is known; the others wait for a `load`."""
        self.take(name for name in self._places.copy() if self.is_known(name, local(self._live[name])))
        self._thin = {name: None for name in self._thin if name in self._places}

    def take(self, names: Iterable[str] | None = None) -> None:
        """Copy w0 of these, before their weights move; None means all."""
        for name in self._thin if names is None else names:
            if name in self._places:
                self.copies[name] = self._built(name)
                del self._places[name]

    @torch.no_grad()
    def settle(self, names: Iterable[str] | None = None) -> None:
        """After these weights moved, drop copies that their places can stand in for in less memory."""
        for name in self._thin if names is None else [name for name in names if name in self._thin]:
            weight = local(self._live[name])
            if name in self.copies:
                origin = self._built(name)
                positions = changed_positions(origin.reshape(-1), weight.reshape(-1))[0]
                positions = positions.to(index_dtype(weight.numel()))
                found = KeptPlaces(positions, read_at(origin, positions))
                if found.nbytes > weight.nbytes:
                    continue
                del self.copies[name]
            else:
                found = _still(self._places[name], weight)
            self._places[name] = found
            self._trust(name)

    def expect_load(self) -> None:
        """Take the weights as they are: those of a checkpoint, whose w0 `load` is about to bring."""
        self.trust()
        self.sums.clear()

    def trust(self) -> None:
        """Take it that the weights differ from w0 where they are said to, and nowhere else."""
        for name in self._places:
            self._trust(name)

    def _built(self, name: str) -> Tensor:
        return self.on_device_of({name: local(self._live[name])})[name]

    def _trust(self, name: str) -> None:
        self._writes[name] = local(self._live[name])._version

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Copies count the writes to their own weights."""
        self.__dict__.update(state)
        self.attached = None
        self.trust()


class _BuiltFrom(Mapping[str, Tensor]):
    def __init__(self, live: Mapping[str, Tensor], base: SparseBaseWeights) -> None:
        self._live, self._base = live, base

    def __getitem__(self, name: str) -> Tensor:
        weight, base = self._live[name], self._base
        check_like(name, weight, base.outlines[name])
        if name in base.copies:
            there = base.copies[name] = base.copies[name].to(weight.device)
            return there
        if not base.is_known(name, weight):
            raise base.lost(name, weight)
        places, origin = base.places[name].to(weight.device), weight.detach().clone()
        write_at_(origin, places.positions, places.origin)
        known = base.sums.get(name)
        if known is not None and checksum(origin) != known:  # torch counts no writes through .data
            raise base.overwritten(name)
        return origin

    def __iter__(self) -> Iterator[str]:
        return iter(self._base)

    def __len__(self) -> int:
        return len(self._base)


def _still(places: KeptPlaces, weight: Tensor) -> KeptPlaces:
    """The places where the weight still differs."""
    positions, origin = places.positions.to(weight.device), places.origin.to(weight.device)
    differs = bits(read_at(weight, positions)) != bits(origin)
    return KeptPlaces(positions[differs], origin[differs])


def remember(
    tracked: TrackedTensors, live: Mapping[str, Tensor], storage: BaseStorage | None, *, never_copied: bool = False
) -> BaseWeights:
    """Keep w0 of what a trainer watches as its `base_storage` says.

    Args:
        tracked: what it watches.
        live: the model's tensors by name; of DTensors this process' part is kept.
        storage: see `RSTConfig.base_storage`.
        never_copied: whether no optimiser moves whole parameters.
    """
    buffers = {name: local(live[name]) for name in tracked.buffers}
    watched = {name: local(live[name]) for name in tracked.sparse} | buffers
    if never_copied:
        return SparseBaseWeights(buffers, tracked.sparse, fixed=tracked.sparse)
    if storage == "sparse":
        return SparseBaseWeights(buffers, tracked.sparse, thin=tracked.sparse)
    return SparseBaseWeights(watched, tracked.sparse) if storage is None else BaseWeights(watched, storage)

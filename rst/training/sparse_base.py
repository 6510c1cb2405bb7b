"""w0 stored only where the weight differs from it, which after a selection is almost nowhere.

A copy of w0 exists while the weights differ from the selected ones: it is made before an optimiser step and dropped
after the selection that follows. In between, `KeptPlaces` reproduce w0 bit for bit.
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

    Writing to a weight that has no copy loses its w0. torch counts writes, so the next reader gets an error.
    """

    def __init__(
        self,
        copied: Mapping[str, Tensor],
        live: Mapping[str, Tensor],
        thin: Iterable[str] = (),
        *,
        fixed: Iterable[str] = (),
    ) -> None:
        """Copy some weights, and expect the others to stay as they are until `take`.

        Args:
            copied: the weights to copy, by name.
            live: the model's parameters by name, of which `thin` may name any; of DTensors, the local part.
            thin: weights that equal w0 now and are not copied yet.
            fixed: weights that are never copied: they change at places that `replace` tells.
        """
        super().__init__(copied, "device")
        self.copies = self._copies
        self.attached: str | None = None
        """Class name of the attached optimiser, or None."""
        self._fixed = frozenset(fixed)
        self._live = live
        self._places: dict[str, KeptPlaces] = {}
        self._writes: dict[str, int | None] = {}  # None: take the count at the next check
        known = {name: local(weight) for name, weight in live.items()} | dict(copied)
        self.outlines = {  # not every layout allows a tensor without values
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
        """Return w0 of one parameter: the copy, or a new tensor if there is none. Raises as `on_device_of`."""
        return self.copies[name] if name in self.copies else self._built(name)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter({**self.copies, **self._places})

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len({**self.copies, **self._places})

    @property
    def names_of_parameters(self) -> Iterable[str]:
        """Return the names of all parameters, without buffers."""
        return self._live.keys()

    @property
    def places(self) -> Mapping[str, KeptPlaces]:
        """Return the `KeptPlaces` of the parameters without a copy."""
        return self._places

    def replace(self, name: str, places: KeptPlaces, *, restored_later: bool = False) -> None:
        """Replace the places of a parameter; its weight may still have to be restored to match them."""
        self._places[name] = places
        self._trust(name)
        if restored_later:
            self._writes[name] = None
            self.sums.pop(name, None)

    def on_device_of(self, live: Mapping[str, Tensor], *, move: bool = True) -> Mapping[str, Tensor]:
        """Return a view of w0 on the devices of the live weights; each tensor is copied there, or built, on access.

        `move` has no effect. Access raises `ParameterMismatchError` if the weight's shape or dtype has changed, and
        `ConfigError` if it was written to since its w0 was last known.
        """
        return _BuiltFrom(live, self)

    def is_known(self, name: str, weight: Tensor) -> bool:
        """Return whether no one else has written to the live weight of a parameter without a copy."""
        return self._writes[name] in (None, weight._version)

    def check(self, name: str, weight: Tensor) -> None:
        """Reject a weight whose w0 is no longer known. Raises as `on_device_of`."""
        check_like(name, weight, self.outlines[name])
        if not self.is_known(name, weight):
            raise self.lost(name, weight)

    def lost(self, name: str, weight: Tensor) -> ConfigError:
        """Return the error for a weight whose w0 is not known."""
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
        """Return the error for a weight with other values than the last step left."""
        return ConfigError(
            "written to outside the attached optimiser's step (through .data?), so its w0 is lost; if weights "
            "are clamped, averaged or swapped between steps, keep a copy of w0: "
            'RSTConfig(base_storage="device")',
            parameter=name,
        )

    def load(self, copies: Mapping[str, Tensor]) -> None:
        """Replace w0; the weights may be restored before or after. Places of `fixed` weights stay."""
        for name in self.copies.keys() | self._thin.keys():
            self._places.pop(name, None)
            self.copies[name] = copies[name].detach().clone()
            self.sums[name] = checksum(self.copies[name])

    def thin(self, names: Iterable[str]) -> None:
        """From now on, store w0 of these parameters only where their weights differ from it."""
        added = [name for name in names if name not in self._thin]
        self.sums |= {name: checksum(self[name]) for name in added}
        self._thin |= dict.fromkeys(added)
        self.settle()

    def thicken(self) -> None:
        """From now on, store copies of all w0 that are known; the others wait for a `load`."""
        self.take(name for name in self._places.copy() if self.is_known(name, local(self._live[name])))
        self._thin = {name: None for name in self._thin if name in self._places}

    def take(self, names: Iterable[str] | None = None) -> None:
        """Copy w0 of these parameters before their weights change; None means all."""
        for name in self._thin if names is None else names:
            if name in self._places:
                self.copies[name] = self._built(name)
                del self._places[name]

    def move_copy(self, name: str, memory: Tensor) -> None:
        """Move a copy of w0 into memory of the same shape and dtype, which belongs to it from then on."""
        self.copies[name] = memory.copy_(self.copies[name])

    @torch.no_grad()
    def settle(self, names: Iterable[str] | None = None) -> None:
        """After these weights changed, drop the copies that places can replace in less memory."""
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
        """Accept the weights as they are: those of a checkpoint, whose w0 `load` is about to restore."""
        self.trust()
        self.sums.clear()

    def trust(self) -> None:
        """Assume that the weights differ from w0 at the recorded places and nowhere else."""
        for name in self._places:
            self._trust(name)

    def _built(self, name: str) -> Tensor:
        return self.on_device_of({name: local(self._live[name])})[name]

    def _trust(self, name: str) -> None:
        self._writes[name] = local(self._live[name])._version

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make a copy count the writes to its own weights."""
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
        if known is not None and checksum(origin) != known:  # torch does not count writes through .data
            raise base.overwritten(name)
        return origin

    def __iter__(self) -> Iterator[str]:
        return iter(self._base)

    def __len__(self) -> int:
        return len(self._base)


def _still(places: KeptPlaces, weight: Tensor) -> KeptPlaces:
    """Return the places where the weight still differs."""
    positions, origin = places.positions.to(weight.device), places.origin.to(weight.device)
    differs = bits(read_at(weight, positions)) != bits(origin)
    return KeptPlaces(positions[differs], origin[differs])


def remember(
    tracked: TrackedTensors, live: Mapping[str, Tensor], storage: BaseStorage | None, *, never_copied: bool = False
) -> BaseWeights:
    """Store w0 of the tracked tensors as `base_storage` says.

    Args:
        tracked: the tensors of the trainer.
        live: the model's tensors by name; of DTensors, the local part is stored.
        storage: see `RSTConfig.base_storage`.
        never_copied: whether no optimiser changes whole parameters.
    """
    buffers = {name: local(live[name]) for name in tracked.buffers}
    watched = {name: local(live[name]) for name in tracked.sparse} | buffers
    if never_copied:
        return SparseBaseWeights(buffers, tracked.sparse, fixed=tracked.sparse)
    if storage == "sparse":
        return SparseBaseWeights(buffers, tracked.sparse, thin=tracked.sparse)
    return SparseBaseWeights(watched, tracked.sparse) if storage is None else BaseWeights(watched, storage)

"""Applying a delta to a live module with one scatter per parameter, all or nothing, and removing it bit for bit.

`prepare` does the checks and the arithmetic once, and keeps the positions and the new and old elements on the module's
device. After that, a swap reads and writes only the changed weights, and subtracts nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rst.checkpoints.delta_in_module import in_module
from rst.checkpoints.transformers_files import coordinates_of
from rst.delta.cast_advice import cast_advice
from rst.delta.concatenation import JoinedChanges, batches
from rst.delta.parameter_delta import ParameterDelta
from rst.delta.sparse_delta import SparseDelta
from rst.delta.validation import validate
from rst.errors import ParameterMismatchError, WrongBaseError
from rst.live.patch import (
    EVERYTHING,
    Elements,
    LiveTensor,
    Patch,
    PatchGroup,
    Place,
    elements,
    in_memory_order,
    memory_positions,
    read_all,
)
from rst.live.swap_version import CountedSwap
from rst.live.undo import UndoOnError
from rst.naming import canonical_names, plain_name, unwrap
from rst.numerics import kernels
from rst.numerics.exactness import bit_equal
from rst.numerics.fingerprint import digests
from rst.operations.base_checks import warn_if_trained_quantized
from rst.quantized.beside import SparseBeside
from rst.quantized.layers import QuantizedLinear, quantized_layers

if TYPE_CHECKING:
    from rst.live.exchange_triton import Exchange

Places = Mapping[str, Place]


class PreparedDelta:
    """A delta that is prepared for one module. Use `apply()` and `remove()`, any number of times, or `with prepared:`.

    It finds the tensors that it changes again if they are moved, replaced or cast. If it is copied or pickled with its
    module, the copy belongs to the copied module. The delta may be removed and applied again between a forward pass and
    its backward pass, because the weights are then the same.

    >>> prepared = delta.prepare(model)
    >>> with prepared:
    ...     model(images)
    """

    def __init__(
        self, groups: Sequence[PatchGroup], *, besides: Sequence[SparseBeside] = (), applied: bool = False
    ) -> None:
        """Use `prepare` instead, which checks everything first."""
        self._groups = groups
        self._applied = applied
        self._on_device: Exchange | None = None
        self.besides = besides
        """What it adds beside quantised layers."""

    @property
    def applied(self) -> bool:
        """Whether the delta is applied."""
        return self._applied

    @property
    def patches(self) -> list[Patch]:
        """The changes, tensor by tensor."""
        return [patch for group in self._groups for patch in group.patches]

    @property
    def nbytes(self) -> int:
        """The bytes held on the module's device: the changes' positions, new and old values, and whole tensors."""
        return sum(patch.nbytes for patch in self.patches) + sum(beside.nbytes for beside in self.besides)

    def apply(self) -> "PreparedDelta":
        """Exchange the base's elements for the tuned ones, in O(nnz), and return itself. Does nothing the second time.

        If an exception occurs between two writes, what was written is undone.

        Raises:
            WrongBaseError: the module no longer has the base's elements at the changed positions (another delta is
                applied, or the module was trained). Nothing is written.
            ParameterMismatchError: a tensor no longer exists, or has changed its shape since `prepare`.
        """
        if not self._applied:
            self.follow()
            for beside in self.besides:
                beside.check_alone()
            if self._exchanged_at_once(applied=True) or self._exchanged_in_passing(applied=True):
                return self
            for group in self._groups:
                if changed := group.lacking("old"):
                    raise WrongBaseError(
                        "no longer has the base's values where the delta changes it; "
                        "is another delta applied, or was the module trained?",
                        parameter=changed[0].live.name,
                    )
            self._exchange(self.patches, applied=True)
        return self

    def remove(self) -> None:
        """Restore every overwritten element, bit for bit. Does nothing if the delta is not applied.

        A tensor that already has the base's elements, because they were loaded again, is left unchanged. Buffers are
        restored whatever they hold, because forward passes write to them (BatchNorm in training mode).

        Raises:
            WrongBaseError: where the delta changed a parameter, it has neither the delta's elements nor the base's,
                because it was loaded or trained since. Nothing is written, and the delta still counts as applied. Load
                the base's weights again to remove it.
            ParameterMismatchError: a tensor no longer exists, or has changed its shape since `prepare`.
        """
        if self._applied:
            self.follow()
            if self._exchanged_at_once(applied=False) or self._exchanged_in_passing(applied=False):
                return
            others = [patch for group in self._groups for patch in group.lacking("new")]
            for patch in others:
                if not (patch.live.place.is_buffer or patch.has(patch.old)):
                    raise _overwritten(patch)
            here = {patch for patch in others if patch.has(patch.old)}
            self._exchange([patch for patch in self.patches if patch not in here], applied=False)

    def __enter__(self) -> "PreparedDelta":
        """Apply the delta."""
        try:
            return self.apply()
        except BaseException:  # after Ctrl-C, the block is not entered, so nothing else would remove the delta
            self.remove()
            raise

    def __exit__(self, *_: object) -> None:
        """Remove the delta."""
        self.remove()

    def follow(self) -> None:
        """Find tensors again that were moved, replaced or cast. `apply` and `remove` do so themselves.

        Raises:
            ParameterMismatchError: a tensor no longer exists, or has changed its shape since `prepare`.
        """
        self._groups = [now for group in self._groups for now in group.found_again()]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what depends on the tensors' place in memory, which differs in a copy."""
        return {**self.__dict__, "_on_device": None}

    def _exchanged_at_once(self, *, applied: bool) -> bool:
        """Exchange all tensors in one or two launches, if kernels can run and the module has the expected elements."""
        patches = self.patches
        if not patches or self.besides or not all(kernels.run_on(patch.live.tensor.device) for patch in patches):
            return False
        from rst.live.exchange_triton import Exchange, can_exchange

        if not all(map(can_exchange, patches)):
            return False
        exchange = self._on_device
        if exchange is None or not exchange.is_of(patches):
            exchange = self._on_device = Exchange(patches)

        def undo() -> None:
            if exchange.put_back():
                self._applied = not applied

        with UndoOnError(undo):
            if exchange.run("new" if applied else "old"):
                self._applied = applied
                exchange.keep()
            else:
                exchange.put_back()
        return self._applied == applied

    def _exchanged_in_passing(self, *, applied: bool) -> bool:
        """Exchange the elements tensor by tensor, if every tensor has the expected ones.

        The weights are visited once, because the cost of a swap is that its elements are far apart in memory.
        """
        found: list[tuple[Patch, Elements]] = []
        counted = CountedSwap((patch.live.tensor, patch.swap_version) for patch in self.patches)

        def undo() -> None:
            for patch, before in reversed(found):
                patch.write(before)
            counted.undone()
            self._turn(not applied)

        with UndoOnError(undo):
            if all(group.exchange("new" if applied else "old", found) for group in self._groups):
                counted.done()
                self._turn(applied)
            else:
                undo()
        return self._applied == applied

    def _exchange(self, patches: Sequence[Patch], *, applied: bool) -> None:
        """Write all patches and record it, or write none. Ctrl-C may come between any two lines."""
        written: list[Patch] = []
        counted = CountedSwap((patch.live.tensor, patch.swap_version) for patch in patches)

        def undo() -> None:
            for patch in written:
                patch.write(patch.old if applied else patch.new)
            counted.undone()
            self._turn(not applied)

        with UndoOnError(undo):
            for patch in patches:
                written.append(patch)
                patch.write(patch.new if applied else patch.old)
            counted.done()
            self._turn(applied)

    def _turn(self, on: bool) -> None:
        for beside in self.besides:
            beside.turn(on)
        self._applied = on


def _overwritten(patch: Patch) -> WrongBaseError:
    changed = patch.read() != patch.new
    return WrongBaseError(
        f"{int(changed.sum())} of the {changed.reshape(-1).shape[0]} values that the delta wrote were changed while "
        f"it was applied, by loading or training. To restore the base, load its weights again and remove the delta "
        f"once more; to keep the weights as they are, call merge_and_unload() of the RSTModel, or drop the prepared "
        f"delta",
        parameter=patch.live.name,
    )


@torch.no_grad()
def prepare(module: nn.Module, delta: SparseDelta) -> PreparedDelta:
    """Check a delta against the module that holds its base weights, and prepare it to be applied (Algorithm 2).

    The weights of linear layers that bitsandbytes or torchao quantised do not change: what the delta changes there is
    added to the layer's output (see `rst.quantized`), and no digest can be compared.

    Args:
        module: a module, wrapped (torch.compile, DataParallel) or not, on any device. It is not changed.
        delta: a delta with any operation, in the coordinates of the checkpoint files or of the module.

    Raises:
        DeltaFormatError: a change is malformed.
        ParameterMismatchError: the module lacks a tensor, has it in another shape or dtype, or has one tensor where the
            delta has two different ones; or the delta's values are not residuals, and a quantised layer has no w0.
        WrongBaseError: the weights at the changed positions are not those that the delta was made from.
    """
    validate(delta.parameters, "delta")
    module = unwrap(module)
    places = places_of(module)
    besides, rest = beside_quantized(module, places, said_in_module(module, delta))
    if rest.parameters:
        warn_if_trained_quantized(rest, stacklevel=3)
    return prepare_at(places, rest, besides)


def beside_quantized(module: nn.Module, places: Places, delta: SparseDelta) -> tuple[list[SparseBeside], SparseDelta]:
    """Split a delta into its changes of quantised linear layers and the rest. Raises the errors of `prepare`."""
    owners = {id(one.layer._parameters): one for one in quantized_layers(module).values()}

    def target(name: str) -> QuantizedLinear | None:
        place = find_place(name, places, delta)
        return owners.get(id(place.owner)) if place.attribute == "weight" else None

    if not owners:
        return [], delta
    targets = {name: one for name in (*delta.parameters, *delta.dense) if (one := target(name)) is not None}
    for name in targets:
        if name in delta.dense:
            raise ParameterMismatchError(
                f"stored whole, and quantised by {targets[name].scheme} in the module", parameter=name
            )
    rest = {name: change for name, change in delta.parameters.items() if name not in targets}
    return [SparseBeside.of(one, delta[name]) for name, one in targets.items()], replace(delta, parameters=rest)


def said_in_module(module: nn.Module, delta: SparseDelta) -> SparseDelta:
    """Convert a well-formed delta to the coordinates of a plain module.

    Raises:
        ParameterMismatchError: as in `prepare`.
    """
    coordinates = coordinates_of(module)
    if not coordinates.files and not delta.tied:
        return delta
    found = {name: place.tensor for name, place in places_of(module).items()}
    tensors = {name: tensor for name, tensor in found.items() if tensor is not None}
    return untied_like(tensors, in_module(delta, coordinates, tensors) if coordinates.files else delta)


def untied_like(tensors: Mapping[str, Tensor], delta: SparseDelta) -> SparseDelta:
    """Make a delta change every name of a tied tensor if the module with these tensors has it as several tensors."""
    apart = {
        alias: owner
        for alias, owner in delta.tied.items()
        if alias in tensors and owner in tensors and tensors[alias] is not tensors[owner]
    }
    if not apart:
        return delta
    return replace(
        delta,
        parameters={**delta.parameters, **{alias: delta[name] for alias, name in apart.items() if name in delta}},
        dense={**delta.dense, **{alias: delta.dense[name] for alias, name in apart.items() if name in delta.dense}},
        buffers=delta.buffers | {alias for alias, name in apart.items() if name in delta.buffers},
        tied={alias: owner for alias, owner in delta.tied.items() if alias not in apart},
    )


def prepare_at(places: Places, delta: SparseDelta, besides: Sequence[SparseBeside] = ()) -> PreparedDelta:
    """Prepare a well-formed delta for tensors at `places`. Raises the errors of `prepare`."""
    live = _distinct({name: _find(name, places, delta) for name in (*delta.parameters, *delta.dense)}, delta)
    groups = []
    for device in {one.tensor.device for one in live.values()}:
        there = {name: live[name] for name in live if live[name].tensor.device == device}
        for batch in batches({name: delta[name] for name in there if name in delta}):
            groups.append(_patch_batch([live[name] for name in batch], list(batch.values())))
        groups += [_patch_whole(one, delta.dense[name]) for name, one in there.items() if name in delta.dense]
    return PreparedDelta(groups, besides=besides)


def places_of(module: nn.Module) -> Places:
    """Return the place of each parameter and buffer, by its plain name and by its name in `open_checkpoint`."""
    places = {}
    for path, owner in module.named_modules(remove_duplicate=False):
        for tensors, is_buffer in ((owner._parameters, False), (owner._buffers, True)):
            for attribute in tensors:
                name = f"{path}.{attribute}" if path else attribute
                places[plain_name(name)] = Place(tensors, attribute, is_buffer)
    return {canonical: places[name] for name, canonical in canonical_names(places).items()} | places


def find_place(name: str, places: Places, delta: SparseDelta) -> Place:
    """Return the place of a delta's tensor in a module, under any of its names. Raises `ParameterMismatchError`."""
    if name in places:
        return places[name]
    for candidate in delta.names_of(name):
        if candidate in places:
            return places[candidate]
    raise ParameterMismatchError("in the delta, but the module has no such parameter or buffer", parameter=name)


def _find(name: str, places: Places, delta: SparseDelta) -> LiveTensor:
    found = LiveTensor.find(name, find_place(name, places, delta))
    wanted: ParameterDelta | Tensor = delta[name] if name in delta else delta.dense[name]
    if found.tensor.shape != wanted.shape or found.tensor.dtype != wanted.dtype:
        raise ParameterMismatchError(
            f"the delta is for {wanted.dtype} {tuple(wanted.shape)}, "
            f"but the module has {found.tensor.dtype} {tuple(found.tensor.shape)}"
            f"{cast_advice(wanted, tuple(found.tensor.shape), found.tensor.dtype)}",
            parameter=name,
        )
    return found


def _distinct(live: Mapping[str, LiveTensor], delta: SparseDelta) -> dict[str, LiveTensor]:
    """Leave out names of a tensor that the delta changes in the same way under another name.

    Raises:
        ParameterMismatchError: the delta changes one tensor in different ways under two names.
    """
    name_at: dict[int, str] = {}
    distinct = {}
    for name, one in live.items():
        first = name_at.setdefault(one.tensor.data_ptr(), name) if one.tensor.numel() else name
        if first == name:
            distinct[name] = one
        elif not _change_alike(delta, first, name):
            raise ParameterMismatchError(
                f"shares its memory with {first} in the module, but the delta changes them differently; untie them "
                f"in the module first, or merge the delta into a checkpoint that has both",
                parameter=name,
            )
    return distinct


def _change_alike(delta: SparseDelta, first: str, second: str) -> bool:
    if first in delta and second in delta:
        return delta[first] == delta[second]
    return first in delta.dense and second in delta.dense and bit_equal(delta.dense[first], delta.dense[second])


def _patch_batch(live: Sequence[LiveTensor], changes: Sequence[ParameterDelta]) -> PatchGroup:
    """Compute the tuned elements of a whole batch at once."""
    joined = JoinedChanges.of(changes).to(live[0].tensor.device)
    slices = [slice(start, end) for start, end in pairwise([0, *accumulate(joined.counts)])]
    row_major = joined.indices_of_64_bits()
    memories = [in_memory_order(one.tensor) for one in live]
    positions = [memory_positions(one.tensor, row_major[part]) for one, part in zip(live, slices, strict=True)]
    old = read_all(list(zip(memories, positions, strict=True)))
    origin = torch.as_tensor(old).view(changes[0].dtype)
    for one, change, found in zip(live, changes, digests(origin, joined.counts), strict=True):
        change.check_touched(one.name, found)
    new = elements(joined.tuned_values(origin))
    patches = [
        Patch(one, memory, where, new[part], old[part])
        for one, memory, where, part in zip(live, memories, positions, slices, strict=True)
    ]
    return PatchGroup(patches, new, old)


def _patch_whole(live: LiveTensor, tensor: Tensor) -> PatchGroup:
    new, old = elements(tensor.detach().to(live.tensor.device)), elements(live.tensor.clone())
    return PatchGroup([Patch(live, elements(live.tensor), EVERYTHING, new, old)], new, old)

"""A delta on a live module: on in one scatter a parameter, all or nothing, and off again without subtracting anything.

Preparing does the checks and the arithmetic once: positions, new and old elements wait on the module's device. A swap
then reads and writes only the changed weights.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from rst.checkpoints.delta_in_module import in_module
from rst.checkpoints.transformers_files import coordinates_of
from rst.delta.concatenation import batches, concatenate_changes, concatenate_tensors
from rst.delta.parameter_delta import ParameterDelta
from rst.delta.sparse_delta import SparseDelta
from rst.delta.validation import validate
from rst.errors import ParameterMismatchError, WrongBaseError
from rst.live.patch import EVERYTHING, Patch, PatchGroup, Spot, elements, end_to_end, in_memory_order, memory_positions
from rst.naming import canonical_names, plain_name, unwrap
from rst.numerics.fingerprint import digests

Places = Mapping[str, tuple[Mapping[str, Tensor | None], str]]


class PreparedDelta:
    """A delta made ready for one module: `apply()` and `remove()` as often as you like, or `with prepared:`.

    It keeps the memory of the tensors that it changes. Copied or pickled with its module, it serves the copy.

    >>> prepared = delta.prepare(model)
    >>> with prepared:
    ...     model(images)
    """

    def __init__(self, groups: Sequence[PatchGroup]) -> None:
        """Use `prepare`, which checks everything first."""
        self._groups = groups
        self.patches = [patch for group in groups for patch in group.patches]
        self._applied = False

    @property
    def applied(self) -> bool:
        """Whether the delta is on."""
        return self._applied

    @property
    def nbytes(self) -> int:
        """Bytes held on the module's device: each change's place, new and old value; whole tensors new and old."""
        return sum(patch.nbytes for patch in self.patches)

    @torch.no_grad()
    def apply(self) -> "PreparedDelta":
        """Exchange the base's elements for the tuned ones, O(nnz). Returns itself; on already, it does nothing.

        An exception between two writes puts back what was written.

        Raises:
            WrongBaseError: the module no longer has the base's elements at the changed positions (another delta is
                on, or it was trained). Nothing is written.
            ParameterMismatchError: a tensor was moved or replaced since `prepare`.
        """
        if self._applied:
            return self
        self._check_spots()
        for group in self._groups:
            if (name := group.stranger()) is not None:
                raise WrongBaseError(
                    "no longer has the base's values where the delta changes it; "
                    "is another delta applied, or was the module trained?",
                    parameter=name,
                )
        self._exchange(applied=True)
        return self

    @torch.no_grad()
    def remove(self) -> None:
        """Put back every overwritten element, bit for bit. Off already, it does nothing.

        Raises:
            ParameterMismatchError: a tensor was moved or replaced since `prepare`.
        """
        if self._applied:
            self._check_spots()
            self._exchange(applied=False)

    def __enter__(self) -> "PreparedDelta":
        """Apply."""
        return self.apply()

    def __exit__(self, *_: object) -> None:
        """Remove."""
        self.remove()

    def _check_spots(self) -> None:
        for patch in self.patches:
            patch.spot.check()

    def _exchange(self, *, applied: bool) -> None:
        """Write all patches and say so, or none: Ctrl-C may come between any two lines."""
        done = 0
        try:
            for patch in self.patches:
                done += 1
                patch.write(patch.new if applied else patch.old)
            self._applied = applied
        except BaseException:
            for patch in self.patches[:done]:
                patch.write(patch.old if applied else patch.new)
            self._applied = not applied
            raise


@torch.no_grad()
def prepare(module: nn.Module, delta: SparseDelta) -> PreparedDelta:
    """Check a delta against the module that holds its base weights, and make it ready to apply (Algorithm 2).

    Args:
        module: wrapped (torch.compile, DataParallel) or not, on any device; it is not changed.
        delta: with any operation, of the checkpoint files or of the module itself where those differ.

    Raises:
        DeltaFormatError: a change is malformed.
        ParameterMismatchError: the module lacks a tensor, or has it in another shape or dtype.
        WrongBaseError: the weights at the changed positions are not those the delta was made from.
    """
    module = unwrap(module)
    return prepare_at(places_of(module), said_in_module(module, delta))


def said_in_module(module: nn.Module, delta: SparseDelta) -> SparseDelta:
    """Check that a delta is well formed, and say it in a plain module's own coordinates.

    Raises:
        RSTError: as `prepare`.
    """
    validate(delta.parameters, "delta")
    coordinates = coordinates_of(module)
    if not coordinates.files:
        return delta
    found = {name: siblings[attribute] for name, (siblings, attribute) in places_of(module).items()}
    return in_module(delta, coordinates, {name: tensor for name, tensor in found.items() if tensor is not None})


def prepare_at(places: Places, delta: SparseDelta) -> PreparedDelta:
    """`prepare` a delta that is well formed, for tensors that lie at `places`. Raises as it does."""
    changes = {
        name: (_spot(name, places, delta, change.shape, change.dtype), change)
        for name, change in delta.parameters.items()
    }
    whole = {
        name: (_spot(name, places, delta, tuple(tensor.shape), tensor.dtype), tensor)
        for name, tensor in delta.dense.items()
    }
    groups = list(_patch_changes(changes))
    return PreparedDelta([*groups, *(_patch_whole(spot, tensor) for spot, tensor in whole.values())])


def places_of(module: nn.Module) -> Places:
    """Where each parameter and buffer lives, by plain name, and by the name that `open_checkpoint` gives it."""
    places: dict[str, tuple[Mapping[str, Tensor | None], str]] = {}
    for path, owner in module.named_modules(remove_duplicate=False):
        for siblings in (owner._parameters, owner._buffers):
            for attribute in siblings:
                name = f"{path}.{attribute}" if path else attribute
                places[plain_name(name)] = (siblings, attribute)
    return {canonical: places[name] for name, canonical in canonical_names(places).items()} | places


def _spot(name: str, places: Places, delta: SparseDelta, shape: tuple[int, ...], dtype: torch.dtype) -> Spot:
    siblings, attribute = find_place(name, places, delta)
    spot = Spot.find(name, siblings, attribute)
    target = spot.tensor
    if tuple(target.shape) != shape or target.dtype != dtype:
        raise ParameterMismatchError(
            f"the delta is for {dtype} {shape}, the module has {target.dtype} {tuple(target.shape)}", parameter=name
        )
    return spot


def find_place(name: str, places: Places, delta: SparseDelta) -> tuple[Mapping[str, Tensor | None], str]:
    """Where a module has a tensor of a delta, under any of its names. Raises `ParameterMismatchError`."""
    for candidate in delta.names_of(name):
        if candidate in places:
            return places[candidate]
    raise ParameterMismatchError("in the delta, but the module has no such parameter or buffer", parameter=name)


def _patch_changes(changes: Mapping[str, tuple[Spot, ParameterDelta]]) -> Iterator[PatchGroup]:
    for device in {spot.tensor.device for spot, _ in changes.values()}:
        there = {name: change for name, (spot, change) in changes.items() if spot.tensor.device == device}
        for batch in batches(there):
            yield _patch_batch([changes[name][0] for name in batch], list(batch.values()))


def _patch_batch(spots: Sequence[Spot], changes: Sequence[ParameterDelta]) -> PatchGroup:
    """Compute all tuned elements of a batch at once."""
    device, dtype = spots[0].tensor.device, changes[0].dtype
    lengths = [change.nnz for change in changes]
    slices = [slice(start, end) for start, end in pairwise([0, *accumulate(lengths)])]
    local = concatenate_tensors([change.indices for change in changes]).to(device, torch.int64)
    whole = elements(local)
    positions = [
        whole[part] if spot.tensor.is_contiguous() else elements(memory_positions(spot.tensor, local[part]))
        for spot, part in zip(spots, slices, strict=True)
    ]
    old = end_to_end([in_memory_order(spot.tensor)[where] for spot, where in zip(spots, positions, strict=True)])
    origin = torch.as_tensor(old, device=device).view(dtype)
    for spot, change, found in zip(spots, changes, digests(origin, lengths), strict=True):
        change.check_touched(spot.name, found)
    new = elements(concatenate_changes(changes).to(device).tuned_values(origin))
    return PatchGroup(
        [
            Patch.at(spot, where, new[part], old[part])
            for spot, where, part in zip(spots, positions, slices, strict=True)
        ],
        old,
    )


def _patch_whole(spot: Spot, tensor: Tensor) -> PatchGroup:
    new, old = elements(tensor.to(spot.tensor.device)), elements(spot.tensor.clone())
    return PatchGroup([Patch.at(spot, EVERYTHING, new, old)], old)

"""Converting a delta of checkpoint files to the names, shapes and positions of a live module."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from rst.checkpoints.coordinates import Coordinates, FileTensor
from rst.delta.cast_advice import cast_advice
from rst.delta.parameter_delta import ParameterDelta, gather, index_dtype
from rst.delta.sparse_delta import SparseDelta
from rst.errors import ParameterMismatchError
from rst.numerics.fingerprint import digest

Piece = ParameterDelta | Tensor  # a change, or a tensor stored whole
Moved = Sequence[tuple[str, FileTensor, Piece]]  # under the delta's name


def in_module(delta: SparseDelta, coordinates: Coordinates, tensors: Mapping[str, Tensor]) -> SparseDelta:
    """Convert a delta to a module's own coordinates.

    Args:
        delta: a valid delta, of the files or of the module itself. If its `coordinates` are unknown, it is of the
            module if that has all of its tensors, in their shapes.
        coordinates: the module's coordinates.
        tensors: the module's tensors, by all of their names, holding the base's values.

    Returns:
        The delta for `tensors`. Those whose elements lie elsewhere in the files get tuned values (op "replace") and no
        digests, which have been compared here. Tensors that the module lacks keep their names.

    Raises:
        ParameterMismatchError: two tensors of the delta are one in the module; where elements are moved, shapes or
            dtypes differ.
        WrongBaseError: where elements are moved, the module's values are not those the delta was made from.
        NotCarriedError: the files' values are computed from the module's.
    """
    if not coordinates.files or delta.coordinates == "module":
        return delta
    pieces: dict[str, Piece] = {**delta.parameters, **delta.dense}
    if delta.coordinates is None and _is_of(delta, pieces, tensors):
        return replace(delta, coordinates="module")
    found = _found(delta, coordinates)
    moved = {name: one for name, one in found.items() if one.moved or one.computed}
    groups: dict[tuple[str, ...], list[tuple[str, FileTensor, Piece]]] = {}
    for name, one in moved.items():
        groups.setdefault(tuple(coordinates.group(one)), []).append((name, one, pieces[name]))
    renamed = renamed_in_module(_without(delta, moved), coordinates)
    parameters, dense = dict(renamed.parameters), dict(renamed.dense)
    for group, members in groups.items():
        live = {name: _whole(tensors[name].detach()) for name in group}
        all_whole = all(isinstance(piece, Tensor) for _, _, piece in members)
        for source, positions, values in _move(coordinates, live, members):
            if all_whole and positions.numel() == live[source].numel():
                dense[source] = values.view(live[source].shape)
            elif positions.numel():
                parameters[source] = _replacing(positions, values, tuple(live[source].shape))
    return replace(renamed, parameters=parameters, dense=dense)


def renamed_in_module(delta: SparseDelta, coordinates: Coordinates) -> SparseDelta:
    """Convert a delta of the files to a module's names; tensors whose elements lie elsewhere there keep their names.

    Raises:
        ParameterMismatchError: two tensors of the delta are one in the module.
    """
    if not coordinates.files or delta.coordinates == "module":
        return delta
    names = {
        name: one.sources[0] for name, one in _found(delta, coordinates).items() if not one.moved and not one.computed
    }
    aliases = {alias: coordinates.find([alias]) for alias in delta.tied}
    tied = {
        alias if (one := aliases[alias]) is None else one.sources[0]: names.get(owner, owner)
        for alias, owner in delta.tied.items()
    }
    return replace(
        delta,
        parameters={names.get(name, name): change for name, change in delta.parameters.items()},
        dense={names.get(name, name): tensor for name, tensor in delta.dense.items()},
        buffers=frozenset(names.get(name, name) for name in delta.buffers),
        tied={alias: owner for alias, owner in tied.items() if alias != owner},
        coordinates="module",
    )


def _found(delta: SparseDelta, coordinates: Coordinates) -> dict[str, FileTensor]:
    """Return the tensors of a delta that the map knows, each mapped to a distinct one."""
    every = {name: coordinates.find(delta.names_of(name)) for name in (*delta.parameters, *delta.dense)}
    found = {name: one for name, one in every.items() if one is not None}
    meant: dict[str, str] = {}
    for name, one in found.items():
        if (other := meant.setdefault(one.name, name)) != name:
            raise ParameterMismatchError(f"the module stores this and {other} in one tensor", parameter=name)
    return found


def _without(delta: SparseDelta, names: Collection[str]) -> SparseDelta:
    return replace(
        delta,
        parameters={name: change for name, change in delta.parameters.items() if name not in names},
        dense={name: tensor for name, tensor in delta.dense.items() if name not in names},
        buffers=delta.buffers - set(names),
        tied={alias: owner for alias, owner in delta.tied.items() if owner not in names},
    )


def _whole(tensor: Tensor) -> Tensor:
    """Gather a DTensor in every process; return other tensors unchanged."""
    gathered: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return gathered


def _is_of(delta: SparseDelta, pieces: Mapping[str, Piece], tensors: Mapping[str, Tensor]) -> bool:
    return all(
        any(alias in tensors and tuple(tensors[alias].shape) == tuple(piece.shape) for alias in delta.names_of(name))
        for name, piece in pieces.items()
    )


def _move(coordinates: Coordinates, group: Mapping[str, Tensor], moved: Moved) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield, for each tensor of a group, its sorted changed positions and the tuned values there."""
    starts = dict(zip(group, accumulate((tensor.numel() for tensor in group.values()), initial=0), strict=False))
    numbers = _Numbers(coordinates, group, starts)
    flat = [tensor.reshape(-1) for tensor in group.values()]
    elements = flat[0] if len(flat) == 1 else torch.cat(flat)
    parts = [_tuned(name, one, piece, numbers, elements) for name, one, piece in moved]
    positions, order = torch.cat([where for where, _ in parts]).sort()
    values = gather(torch.cat([values for _, values in parts]), order)
    edges = torch.tensor([*starts.values(), elements.numel()], device=positions.device)
    cuts = pairwise(torch.searchsorted(positions, edges).tolist())
    for (name, start), (first, last) in zip(starts.items(), cuts, strict=True):
        yield name, positions[first:last] - start, values[first:last]


class _Numbers:
    """The elements of a group of the module's tensors, numbered consecutively, by their place in the files."""

    def __init__(self, coordinates: Coordinates, group: Mapping[str, Tensor], starts: Mapping[str, int]) -> None:
        self._coordinates, self._group, self._starts = coordinates, group, starts
        self._pushed: Mapping[str, Tensor] | None = None

    def at(self, one: FileTensor, positions: Tensor) -> Tensor:
        """Return the numbers of a file tensor's elements at flat positions, int64."""
        if one.view is not None:
            return one.positions_in_source(positions) + self._starts[one.sources[0]]
        if self._pushed is None:  # the push moves the numbers like the elements
            numbered = {
                name: torch.arange(start, start + tensor.numel(), device=tensor.device).view(tensor.shape)
                for (name, tensor), start in zip(self._group.items(), self._starts.values(), strict=True)
            }
            self._pushed = self._coordinates.push_group(one, numbered)
        return self._pushed[one.name].reshape(-1)[positions]


def _tuned(name: str, one: FileTensor, piece: Piece, numbers: _Numbers, elements: Tensor) -> tuple[Tensor, Tensor]:
    """Return the numbers of the elements that a piece changes, and their tuned values."""
    one.check_laid_out()
    if tuple(piece.shape) != one.shape or piece.dtype != elements.dtype:
        raise ParameterMismatchError(
            f"the delta is for {piece.dtype} {tuple(piece.shape)}, but the files have {elements.dtype} {one.shape}"
            f"{cast_advice(piece, one.shape, elements.dtype)}",
            parameter=name,
        )
    piece = piece.to(elements.device)
    if isinstance(piece, Tensor):
        return numbers.at(one, torch.arange(piece.numel(), device=piece.device)), piece.reshape(-1)
    where = numbers.at(one, piece.indices.long())
    origin = gather(elements, where)
    piece.check_touched(name, digest(origin))
    return where, piece.tuned_values(origin)


def _replacing(positions: Tensor, values: Tensor, shape: tuple[int, ...]) -> ParameterDelta:
    indices = positions.to(index_dtype(torch.Size(shape).numel()))
    return ParameterDelta(indices, values, shape, values.dtype, indices[:0], values[:0], None, "replace")

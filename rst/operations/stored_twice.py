"""Detecting, by value, tied tensors that one side's file stores twice and the other's once."""

import warnings
from collections.abc import Collection, Iterator

from torch import Tensor

from rst.checkpoints.checkpoint import Checkpoint
from rst.delta.parameter_delta import is_judged
from rst.errors import RSTWarning
from rst.numerics.exactness import RESIDUAL_DTYPES, as_bytes, bit_equal

_GLANCE = 64  # elements that distinguish nearly all different tensors
_NAMES_OF_ONE = 3  # as many as tied tensors usually have beside another


def stored_twice(base: Checkpoint, tuned: Checkpoint) -> tuple[dict[str, str], set[str]]:
    """Find ties by value, which files do not tell.

    A side that lacks a name counts as having the two tied: a state dict or file may hold a tied embedding once or
    twice. Only matrices count, and not constant ones, which are equal by chance.

    Returns:
        Names of which base and tuned weights have the same tensor as under another name, to that name; and names of
        which the base has, or may have, the same tensor, and the tuned weights have two. A matrix that the base lacks
        may be there under a name of the same form.
    """
    apart = set()
    found: dict[str, str] = {}
    for side, other in ((base, tuned), (tuned, base)):
        for alias, owner in _twins(side):
            for name, twin in ((alias, owner), (owner, alias)):
                if twin not in other or name in found or twin in found:
                    continue
                if name not in other or bit_equal(other[name].detach(), other[twin].detach()):
                    found[name] = twin
                    break
            else:
                if side is base and alias in tuned and owner in tuned:
                    apart |= {alias, owner}
    for new in (name for name in tuned if name not in base and name not in found and tuned.outline(name).ndim >= 2):
        alike = [name for name in base if name in tuned and _form(base, name) == _form(tuned, new)]
        apart |= {*alike} if len(alike) <= _NAMES_OF_ONE else set()
    return found, apart


def warn_of_twins(base: Checkpoint, changed: Collection[str], said: Collection[str]) -> None:
    """Warn if a tensor changes and another one of the base with the same values, which is not mentioned, does not.

    A delta made from a base that holds a tied tensor once does not know the other name.
    """
    first = {_key(tensor): name for name in changed if (tensor := _matrix(base, name)) is not None}
    twins = {
        name: owner
        for name in (base if first else ())
        if name not in said
        and (tensor := _matrix(base, name)) is not None
        and (owner := first.get(_key(tensor))) is not None
    }
    found = [(name, owner) for name, owner in twins.items() if bit_equal(base[name].detach(), base[owner].detach())]
    if found:
        name, owner = found[0]
        warnings.warn(
            f"{base.source}: {owner} changes, but {name}, which has the same values in the base, does not "
            f"({len(found)} such); if the two are tied, merge into a base that has the tensor once, or copy the "
            f"merged {owner} to {name}",
            RSTWarning,
            stacklevel=4,
        )


def _twins(weights: Checkpoint) -> Iterator[tuple[str, str]]:
    first: dict[tuple[object, ...], str] = {}
    for name in weights:
        if (tensor := _matrix(weights, name)) is None:
            continue
        owner = first.setdefault(_key(tensor), name)
        if owner != name and bit_equal(weights[owner].detach(), tensor) and tensor.min() != tensor.max():
            yield name, owner


def _matrix(weights: Checkpoint, name: str) -> Tensor | None:
    """Return a tensor that may be tied; None for vectors, and for tensors without residuals or values."""
    outline = weights.outline(name)
    if not is_judged(outline) or outline.dtype not in RESIDUAL_DTYPES or outline.ndim < 2 or not outline.numel():
        return None
    tensor = weights[name].detach()
    return tensor if is_judged(tensor) and not tensor.is_meta else None


def _form(weights: Checkpoint, name: str) -> tuple[object, ...]:
    outline = weights.outline(name)
    return outline.dtype, outline.shape


def _key(tensor: Tensor) -> tuple[object, ...]:
    """Return a key that equal tensors share, without reading all of them."""
    first = tensor[0].reshape(-1)[:_GLANCE].cpu()
    return tensor.dtype, tensor.shape, bytes(as_bytes(first).numpy())

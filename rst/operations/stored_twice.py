"""Tied tensors that a file has twice, or once where the other side has them twice: found by their values."""

from collections.abc import Iterator

from torch import Tensor

from rst.checkpoints.checkpoint import Checkpoint
from rst.delta.parameter_delta import is_judged
from rst.numerics.exactness import RESIDUAL_DTYPES, as_bytes, bit_equal

_GLANCE = 64  # elements that tell nearly all different tensors apart


def stored_twice(base: Checkpoint, tuned: Checkpoint) -> dict[str, str]:
    """Names of which base and tuned weights have the same tensor as under another name, to that name.

    A side that lacks the first counts as one that has the two tied: a state dict or file may have a tied embedding
    once or twice. Only matrices count, and not those of one value, which are alike by chance.
    """
    found: dict[str, str] = {}
    for side, other in ((base, tuned), (tuned, base)):
        for alias, owner in _twins(side):
            for name, twin in ((alias, owner), (owner, alias)):
                if twin not in other or name in found or twin in found:
                    continue
                if name not in other or bit_equal(other[name].detach(), other[twin].detach()):
                    found[name] = twin
                    break
    return found


def _twins(weights: Checkpoint) -> Iterator[tuple[str, str]]:
    first: dict[tuple[object, ...], str] = {}
    for name in weights:
        outline = weights.outline(name)
        if not is_judged(outline) or outline.dtype not in RESIDUAL_DTYPES or outline.ndim < 2 or not outline.numel():
            continue
        tensor = weights[name].detach()
        if tensor.is_meta or not is_judged(tensor):
            continue
        key = (tensor.dtype, tensor.shape, _glance(tensor))
        owner = first.setdefault(key, name)
        if owner != name and bit_equal(weights[owner].detach(), tensor) and tensor.min() != tensor.max():
            yield name, owner


def _glance(tensor: Tensor) -> bytes:
    return bytes(as_bytes(tensor[0].reshape(-1)[:_GLANCE].cpu()).numpy())

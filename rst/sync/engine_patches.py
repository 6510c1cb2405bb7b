"""Changes of a step in a follower's model, as patches for an inference engine with the same weights."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from rst.delta.parameter_delta import changed_weights
from rst.errors import NotCarriedError
from rst.interop.vllm import MOST_INDEXED, EnginePatches, SparsePatch


class Exchange(NamedTuple):
    """Elements of one tensor of the checkpoint files: row-major positions, with old and new values.

    `old` and `new` are floats or their bits; all have the shape (nnz,).
    """

    positions: Tensor
    old: Tensor
    new: Tensor


def patches_of(changes: Mapping[str, Exchange], model: Mapping[str, Tensor]) -> EnginePatches:
    """Express exchanges as patches.

    Args:
        changes: by the tensor's name in the files.
        model: tensors with the dtype and shape of the files, by the same names.

    Raises:
        NotCarriedError: an integer tensor changes, or one of 2^31 elements or more.
    """
    patches, reverting = [], []
    for name, (positions, old, new) in changes.items():
        dtype, shape = model[name].dtype, tuple(model[name].shape)
        if not dtype.is_floating_point or model[name].numel() > MOST_INDEXED:
            raise NotCarriedError(
                f"patches have floating-point values and int32 positions, this is {dtype} {shape}", parameter=name
            )
        indices = positions.to(old.device, torch.int32).contiguous()
        patches.append(SparsePatch(name, indices, new.view(dtype).contiguous(), shape))
        reverting.append(SparsePatch(name, indices, old.view(dtype).contiguous(), shape))
    return EnginePatches(patches, reverting)


def patches_between(model: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> EnginePatches:
    """Return patches that turn a model's tensors into the wanted ones, bit for bit. Raises as `patches_of`."""
    changes = {
        name: Exchange(*changed_weights(name, model[name], new.to(model[name].device))) for name, new in wanted.items()
    }
    return patches_of({name: change for name, change in changes.items() if change.positions.numel()}, model)

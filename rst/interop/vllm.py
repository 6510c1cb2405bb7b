"""Deltas as weight patches that inference engines apply in place, such as vLLM's sparse weight transfer.

A patch gives new values for some elements of one checkpoint tensor. The attributes are those of vLLM's
`SparseWeightPatch` (`name, indices, values, full_shape`); nothing is imported from vLLM, so a trainer does not need it.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rst.checkpoints.checkpoint import Weights, open_checkpoint
from rst.delta.parameter_delta import ParameterDelta, check_no_nan, gather
from rst.delta.sparse_delta import SparseDelta
from rst.delta.validation import validate
from rst.errors import ConfigError, NotCarriedError, RSTWarning
from rst.numerics.fingerprint import digest
from rst.operations.base_checks import names_in_base

MOST_INDEXED = (1 << 31) - 1  # most elements of a tensor whose positions always fit int32


@dataclass(frozen=True, eq=False)
class SparsePatch:
    """Elements of one checkpoint tensor.

    Attributes:
        name: the tensor's name in the checkpoint.
        indices: row-major positions, int32, shape (nnz,), sorted, unique, contiguous.
        values: the elements' new values, in the checkpoint's floating dtype, shape (nnz,), contiguous, no NaN.
        full_shape: the tensor's shape.
    """

    name: str
    indices: Tensor
    values: Tensor
    full_shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class EnginePatches:
    """A delta as patches.

    Attributes:
        patches: patches that turn the base's weights into the tuned ones.
        reverting: patches that turn the tuned weights into the base's: its values at the same positions, in the same
            order. Empty without a base.
    """

    patches: Sequence[SparsePatch]
    reverting: Sequence[SparsePatch]


@torch.no_grad()
def to_engine_patches(delta: SparseDelta, base: Weights | None = None) -> EnginePatches:
    """Express a delta as patches of absolute values, with those that revert it.

    Args:
        delta: the delta, with any operation, of floating-point parameters.
        base: the weights it was made from (see `rst.open_checkpoint`); read at the changed positions. Patches lie on
            its device. A delta of absolute values (op "replace") needs none.

    Raises:
        ConfigError: the delta's op needs a base.
        NotCarriedError: the delta stores tensors whole, changes integers or tensors of 2^31 elements and more; a patch
            has no place for them.
        ParameterMismatchError: the base lacks a parameter, or has it in another shape or dtype.
        WrongBaseError: the base's values are not those the delta was made from.
        NonFiniteError: the base has NaN where the delta changes it.
        DeltaFormatError: the delta is malformed.
    """
    if delta.dense:
        raise NotCarriedError("is stored whole; send such tensors as dense weights", parameter=min(delta.dense))
    validate(delta.parameters, "delta")
    for name, change in delta.items():
        if not change.dtype.is_floating_point:
            raise NotCarriedError(
                f"patches have floating-point values, but the delta has {change.dtype}", parameter=name
            )
        if change.numel > MOST_INDEXED:
            raise NotCarriedError(
                f"patches have int32 positions, which cannot address {change.numel} elements; send it as a dense "
                f"weight",
                parameter=name,
            )
    if base is None:
        return EnginePatches([_absolute(name, change) for name, change in delta.items()], [])
    weights = open_checkpoint(base).named_as(delta)
    patches, reverting = [], []
    for name, change in delta.items():
        for present in names_in_base(name, delta, weights):
            there, back = _pair(present, weights.original_names[present], change, weights[present].detach())
            patches.append(there)
            reverting.append(back)
    weights.check_unchanged()
    return EnginePatches(patches, reverting)


def _absolute(name: str, change: ParameterDelta) -> SparsePatch:
    if change.op != "replace":
        raise ConfigError(f'op "{change.op}" stores the change from a base; pass that base', parameter=name)
    check_no_nan(name, change.values)
    return SparsePatch(name, change.indices.to(torch.int32).contiguous(), change.values.contiguous(), change.shape)


def _pair(where: str, name: str, change: ParameterDelta, base: Tensor) -> tuple[SparsePatch, SparsePatch]:
    change = change.to(base.device)
    positions, flat = change.indices.long(), base.reshape(-1)
    origin = gather(flat, positions)
    change.check_touched(where, digest(origin))
    target = change.tuned_values(origin)
    check_no_nan(where, origin)
    check_no_nan(where, target)
    indices = change.indices.to(torch.int32).contiguous()
    return (
        SparsePatch(name, indices, target.contiguous(), change.shape),
        SparsePatch(name, indices, origin, change.shape),
    )


def register() -> None:
    """Register the weight-transfer backend `rst` in vLLM, whose `vllm.general_plugins` call this in every process.

    `LLM(..., weight_transfer_config=WeightTransferConfig(backend="rst"))` follows a chain of `rst.sync` from then on.
    If vLLM is older than 0.29, which has no patches in checkpoint coordinates, it warns and lets vLLM start.
    """
    try:
        from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
        from vllm.model_executor.model_loader import checkpoint_weight_patch  # noqa: F401
    except ImportError as error:
        message = f'this vLLM cannot have the weight-transfer backend "rst", which needs 0.29 or later ({error})'
        warnings.warn(message, RSTWarning, stacklevel=2)
        return
    if "rst" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine("rst", "rst.interop.vllm_engine", "ChainEngine")

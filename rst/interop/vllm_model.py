"""A vLLM model's weights, written and read in the coordinates of its checkpoint, through the model's own loader.

An engine may keep weights in another layout than its checkpoint's: on a CPU, vLLM packs those of linear layers for its
kernels, and multiplies by a packed copy even if it keeps the plain ones. A patch would then be lost silently. Therefore
weights are patched in place only if reading them back gives what was loaded; otherwise they are loaded whole.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rst.errors import CheckpointError
from rst.interop.vllm import SparsePatch

try:
    from vllm.model_executor.model_loader.checkpoint_weight_patch import (
        CheckpointWeightPatch,
        load_checkpoint_weight_patches,
    )
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
except ImportError as error:
    raise ImportError(f"rst.interop.vllm_engine needs vLLM 0.29 or later ({error})") from error


@torch.no_grad()
def load_whole(model: nn.Module, model_config: object, weights: Mapping[str, Tensor]) -> None:
    """Load all weights again, as at the start, into the memory that the engine's kernels and graphs use."""
    initialize_layerwise_reload(model)
    model.load_weights(weights.items())  # type: ignore[operator]
    finalize_layerwise_reload(model, model_config)
    for layer in _layers_on_cpu(model):  # vLLM does not update a tied layer's packed copy
        if layer.weight.numel():
            layer.quant_method.process_weights_after_loading(layer)


def load_patches(model: nn.Module, patches: Iterable[SparsePatch]) -> None:
    """Write patches in place. If the loader raises, some may have been written."""
    load_checkpoint_weight_patches(
        model,
        [
            CheckpointWeightPatch(patch.name, patch.full_shape, patch.values.dtype, patch.values, patch.indices)
            for patch in patches
        ],
        validate_unique_indices=False,  # checked when the delta was read
    )


def can_be_patched(model: nn.Module, weights: Mapping[str, Tensor]) -> bool:
    """Return whether a model that has just loaded `weights` stores exactly these, as in the checkpoint."""
    if any(_multiplies_by_a_copy(layer) for layer in _layers_on_cpu(model)):
        return False
    try:
        check_loaded(model, weights.items())
    except Exception:  # a loader may raise any class for packed weights
        return False
    return True


def check_patched(model: nn.Module, patches: Iterable[SparsePatch]) -> None:
    """Read the patched elements back. Raises `CheckpointError` if the model has other values."""
    check_loaded(model, ((patch.name, _only_patched(patch)) for patch in patches))


def check_loaded(model: nn.Module, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Compare what the loader would write with the model's values; nothing is compared if a weight is NaN.

    Raises:
        CheckpointError: the model has other values, or the loader does not copy a tensor.
    """
    for name, weight in weights:
        compared, different = _compare(model, name, weight)
        if different or not compared:
            raise CheckpointError(
                f"the engine should have {compared:,} elements of it, but {different:,} of them have other values",
                parameter=name,
            )


def _compare(model: nn.Module, name: str, weight: Tensor) -> tuple[int, int]:
    """Return how many elements the loader would write here, and how many of those differ now."""
    compared = different = 0

    def compare(destination: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        nonlocal compared, different
        if destination.shape != source.shape:
            raise CheckpointError(
                f"the engine has the shape {tuple(destination.shape)}, but the weight has {tuple(source.shape)}",
                parameter=name,
            )
        source = source.to(destination.device, destination.dtype)
        # `!=` alone treats -0.0 and 0.0 as equal.
        other = (destination != source) | (destination.signbit() != source.signbit())
        compared += source.numel()
        different += int((other & ~source.isnan()).sum())
        return destination

    with _copying(compare):
        model.load_weights([(name, weight)])  # type: ignore[operator]
    return compared, different


def _layers_on_cpu(model: nn.Module) -> list[Any]:
    """Return the layers that use vLLM's matrix product for CPUs."""
    return [layer for layer in model.modules() if hasattr(layer, "cpu_linear")]


def _multiplies_by_a_copy(layer: Any) -> bool:
    """Return whether a layer on a CPU multiplies by other weights than its `weight`."""
    if layer.weight.dim() != 2:
        return True
    ones = layer.weight.new_ones(1, layer.weight.shape[1])
    return bool(layer.cpu_linear(ones, torch.zeros_like(layer.weight), None).any())


def _only_patched(patch: SparsePatch) -> Tensor:
    whole = patch.values.new_full((torch.Size(patch.full_shape).numel(),), float("nan"))
    return whole.index_copy_(0, patch.indices.long(), patch.values).view(patch.full_shape)


@contextmanager
def _copying(copy: Callable[..., Tensor]) -> Iterator[None]:
    original = Tensor.copy_
    Tensor.copy_ = copy  # type: ignore[method-assign]
    try:
        yield
    finally:
        Tensor.copy_ = original  # type: ignore[method-assign]

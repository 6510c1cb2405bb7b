"""Gradients at a support alone: `dW[i, j] = sum_t dY[t, i] X[t, j]` for the kept `(i, j)` of a linear layer.

The layer computes as usual with its weight frozen, so the dense product of the backward pass, a third of a step's
arithmetic, is never computed. Its output passes through an identity operation whose gradient with respect to the kept
values is the sampled product of the layer's input and its output gradient.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Pattern = tuple[Tensor, Tensor]
"""Row starts and columns of a matrix' kept elements, as in CSR: int32 of shapes (rows + 1,) and (n,)."""

# Above this share the dense product is faster, and below this size neither matters.
_SPARSE_ENOUGH = 0.02
_LARGE_ENOUGH = 1 << 16


def pattern_of(positions: Tensor, rows: int, columns: int) -> Pattern:
    """Return the CSR pattern of sorted flat positions, shape (n,), in a matrix of this size."""
    starts = torch.arange(rows + 1, device=positions.device) * columns
    crow = torch.searchsorted(positions.long(), starts)
    return crow.to(torch.int32), (positions % columns).to(torch.int32)


def layer_of(name: str, weight: nn.Parameter, model: nn.Module) -> nn.Module | None:
    """Return the linear layer that a weight belongs to; None if it is not a weight of exactly one such layer.

    These are `torch.nn.Linear` and transformers' `Conv1D`, whose weight is transposed. Subclasses may compute
    differently.
    """
    owners = [module for module in model.modules() if any(own is weight for own in module._parameters.values())]
    if len(owners) != 1 or name.rpartition(".")[2] != "weight":
        return None
    kind = type(owners[0])
    known = kind is nn.Linear or (kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils")
    return owners[0] if known else None


def pays(weight: Tensor, count: int) -> bool:
    """Return whether sampling `count` gradients is faster than the dense product."""
    return weight.numel() >= _LARGE_ENOUGH and count <= _SPARSE_ENOUGH * weight.numel()


@dataclass(eq=False)
class SampledLayer:
    """A linear layer that samples the gradients of its kept weights.

    Attributes:
        layer: the layer.
        values: the tensor that receives the gradients, float32 or float64 of shape (n,).
        pattern: the positions of the values in the layer's weight.
        transposed: whether the weight is (inputs, outputs).
        paused: whether forward passes are currently ignored.
    """

    layer: nn.Module
    values: Tensor
    pattern: Pattern
    transposed: bool
    paused: bool = False
    _hook: RemovableHandle | None = field(default=None, repr=False)

    def start(self) -> None:
        """Hook into the layer's forward passes."""
        at_support = _operation()

        def hook(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
            if self.paused or not torch.is_grad_enabled():
                return None
            watched: Tensor = at_support(output, inputs[0], self.values, *self.pattern, self.transposed)
            return watched

        self._hook = self.layer.register_forward_hook(hook)

    def move(self, positions: Tensor) -> None:
        """Sample at the same number of other positions. Works in place, so that compiled code stays valid."""
        weight = self.layer.weight
        assert isinstance(weight, Tensor)
        for there, found in zip(self.pattern, pattern_of(positions, *weight.shape), strict=True):
            there.copy_(found)

    def stop(self) -> None:
        """Restore the layer."""
        if self._hook:
            self._hook.remove()
        self._hook = None


@torch.no_grad()
def sampled_gradient(left: Tensor, right: Tensor, crow: Tensor, columns: Tensor, dtype: torch.dtype) -> Tensor:
    """Compute `left.T @ right` at the kept elements only, in `dtype`, shape (n,).

    Args:
        left: shape (tokens, rows), any strides.
        right: shape (tokens, columns).
        crow: see `Pattern`.
        columns: see `Pattern`.
        dtype: dtype of the computation, float32 or float64.
    """
    zeros = torch.zeros(columns.numel(), dtype=dtype, device=columns.device)
    shape = (left.shape[1], right.shape[1])
    pattern = torch.sparse_csr_tensor(crow, columns, zeros, shape, check_invariants=False)
    found: Tensor = torch.sparse.sampled_addmm(pattern, left.to(dtype).t(), right.to(dtype), beta=0.0).values()
    return found


@cache
def make_first_csr_quietly() -> None:
    """Trigger and suppress torch's beta warning for CSR tensors, which it gives once per process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.zeros(1, 1).to_sparse_csr()


@cache
def _operation() -> Callable[..., Tensor]:
    """Return an operation that torch.compile and activation checkpointing handle like torch's own."""
    make_first_csr_quietly()

    @torch.library.custom_op("rst::at_support", mutates_args=())
    def at_support(
        output: Tensor, inputs: Tensor, values: Tensor, crow: Tensor, columns: Tensor, transposed: bool
    ) -> Tensor:
        return output.clone()  # the next operation may write in place

    @torch.library.custom_op("rst::sampled_gradient", mutates_args=())
    def sampled(
        gradient: Tensor, inputs: Tensor, values: Tensor, crow: Tensor, columns: Tensor, transposed: bool
    ) -> Tensor:
        out, into = gradient.flatten(0, -2), inputs.flatten(0, -2)
        left, right = (into, out) if transposed else (out, into)
        return sampled_gradient(left, right, crow, columns, values.dtype)

    at_support.register_fake(lambda output, *_: torch.empty_like(output))
    sampled.register_fake(lambda gradient, inputs, values, *_: torch.empty_like(values))

    def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:5])
        ctx.transposed = inputs[5]

    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        found = sampled(gradient, *ctx.saved_tensors, ctx.transposed) if ctx.needs_input_grad[2] else None
        return gradient, None, found, None, None, None

    at_support.register_autograd(backward, setup_context=save)
    return at_support

"""The operations of layers over a batch of several adapters: one dense and one sparse operation for all samples.

After the context, every function takes the arguments of torch's function. A function that returns `None` leaves the
call to `MixedContext.per_adapter`, which is correct if the inputs and the output have the samples in dimension 0.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from rst.errors import ParameterMismatchError
from rst.mixed.sparse_product import Changes, add_convolution, add_linear, put_embeddings, spread

if TYPE_CHECKING:
    from rst.mixed.context import MixedContext

Rule = Callable[..., Any]
_BY_CHANCE = 3


def linear(context: "MixedContext", input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """Compute `linear` for `input` (samples, ..., in) and `weight` (out, in)."""
    changes = sparse_changes(context, weight, bias)
    if changes is None or not context.has_samples(input):
        return None
    if changes[0] and context.groups.are_large(input.shape[:-1].numel()):
        return _with_tuned_copies(context, functional.linear, input, weight, bias)
    output = functional.linear(input, weight, bias).contiguous()
    add_linear(output, input, *changes, context.groups)
    return output


def matmul(context: "MixedContext", input: Tensor, other: Tensor) -> Tensor | None:
    """Multiply `input` (samples, ..., in) by a matrix (in, out)."""
    changes = sparse_changes(context, other, None)
    if changes is None or not context.has_samples(input) or input.ndim < 2 or other.ndim != 2:
        return None
    if changes[0] and context.groups.are_large(input.shape[:-1].numel()):
        return _with_tuned_copies(context, torch.matmul, input, other)
    output = torch.matmul(input, other).contiguous()
    add_linear(output, input, *changes, context.groups, transposed=True)
    return output


def addmm(context: "MixedContext", input: Tensor, mat1: Tensor, mat2: Tensor, **factors: float) -> Tensor | None:
    """Compute `addmm` as GPT-2 uses it: bias (out,), activations (samples times tokens, in), a matrix (in, out)."""
    # The layer has flattened samples and tokens into one dimension; every sample has the same number of tokens.
    changes = sparse_changes(context, mat2, input)
    samples = context.groups.size
    if changes is None or factors or input.ndim != 1 or context.varying(mat1) is not None or len(mat1) % samples:
        return None
    rows = mat1.reshape(samples, len(mat1) // samples, -1)
    if changes[0] and context.groups.are_large(len(mat1)):

        def product(own: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
            return torch.addmm(bias, own.flatten(0, 1), matrix).view(*own.shape[:2], -1)

        return _with_tuned_copies(context, product, rows, mat2, input).flatten(0, 1)
    output = torch.addmm(input, mat1, mat2)
    add_linear(output.view(*rows.shape[:2], -1), rows, *changes, context.groups, transposed=True)
    return output


def convolution(dense: Rule) -> Rule:
    """Return the rule for `dense`, one of torch's convolutions."""

    def convolve(
        context: "MixedContext",
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: str | int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> Tensor | None:
        changes = sparse_changes(context, weight, bias)
        if changes is None or not context.has_samples(input) or input.ndim != weight.ndim:
            return None
        kernel = weight.shape[2:]
        places = input[:, 0].numel() // prod(_each(stride, len(kernel)))
        if changes[0] and context.groups.are_large(places):

            def layer(own: Tensor, kernels: Tensor, biases: Tensor | None) -> Any:
                return dense(own, kernels, biases, stride, padding, dilation, groups)

            return _with_tuned_copies(context, layer, input, weight, bias)
        output: Tensor = dense(input, weight, bias, stride, padding, dilation, groups)
        dilations = _each(dilation, len(kernel))
        add_convolution(
            output,
            input,
            *changes,
            context.groups,
            kernel=kernel,
            stride=_each(stride, len(kernel)),
            padding=_both_sides(padding, kernel, dilations),
            dilation=dilations,
            channel_groups=groups,
        )
        return output

    return convolve


def embedding(
    context: "MixedContext",
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor | None:
    """Look up `input` (samples, ...), or (1, ...) for positions that all samples share."""
    if max_norm is not None:
        raise ParameterMismatchError(
            f"max_norm={max_norm} writes to the base's weights", parameter=context.name(weight)
        )
    changes = sparse_changes(context, weight, None)
    size = context.groups.size
    if changes is None or context.varying(input) is not None or not input.ndim or len(input) not in (1, size):
        return None
    if input.ndim == 1 and _may_be_positions(input):
        first = int(input[0])
        raise ParameterMismatchError(
            f"the ids {first} to {first + size - 1} in one dimension may be {size} samples or {size} "
            "positions; give positions a first dimension of 1",
            parameter=context.name(weight),
        )
    ids = input.expand(size, *input.shape[1:])
    output = functional.embedding(ids, weight)
    put_embeddings(output, ids, changes[0], context.groups)
    return output


def _may_be_positions(ids: Tensor) -> bool:
    """Return whether ids follow each other, from any first one as in OPT; few that do may be labels by chance."""
    counted = torch.arange(len(ids), device=ids.device)
    return torch.equal(ids, counted) or (len(ids) > _BY_CHANCE and torch.equal(ids - ids[0], counted))


def layer_norm(
    context: "MixedContext",
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor | None:
    """Normalise `input` (samples, ..., *normalized_shape)."""
    if not context.has_samples(input) or input.ndim <= len(normalized_shape):
        return None
    # The normalisation depends on no adapter; scale and shift, which are small, are then applied sample by sample.
    normal = functional.layer_norm(input, normalized_shape, eps=eps)
    return _scale_and_shift(context, normal, weight, bias, after=input.ndim - len(normalized_shape))


def group_norm(
    context: "MixedContext",
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor | None:
    """Normalise `input` (samples, channels, ...)."""
    if not context.has_samples(input):
        return None
    return _scale_and_shift(context, functional.group_norm(input, num_groups, eps=eps), weight, bias, after=1)


def batch_norm(
    context: "MixedContext",
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    """Normalise `input` (samples, channels, ...) with the running statistics."""
    tensors = {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias}
    if training:
        names = ", ".join(context.name(tensor) for tensor in tensors.values() if context.varying(tensor) is not None)
        raise ParameterMismatchError(f"{names}: the batch's own statistics would mix its samples")
    if not context.has_samples(input) or any(context.varying(one) is not None for one in (running_mean, running_var)):
        return None
    normal = functional.batch_norm(input, running_mean, running_var, eps=eps)
    return _scale_and_shift(context, normal, weight, bias, after=1)


def elementwise(operation: Rule) -> Rule:
    """Return the rule for an operation that broadcasts two tensors: one has the samples, the other is a parameter."""

    def combine(context: "MixedContext", *args: Any, **factors: Any) -> Any:
        rest = [tensor for tensor in args if context.varying(tensor) is None]
        if len(args) != 2 or factors or len(rest) != 1 or not isinstance(rest[0], Tensor):
            return None
        samples = rest[0]
        if not context.has_samples(samples):
            return None

        def aligned(tensor: Tensor) -> Tensor | None:
            shape = tensor.shape if tensor.ndim < samples.ndim else tensor.shape[1:]
            # A tensor without dimensions stays one: with dimensions it would decide the dtype of the result.
            if not 0 < tensor.ndim <= samples.ndim or (tensor.ndim == samples.ndim and len(tensor) != 1):
                return None
            return per_sample(context, tensor).view(-1, *[1] * (samples.ndim - 1 - len(shape)), *shape)

        both = [tensor if tensor is samples else aligned(tensor) for tensor in args]
        return None if any(one is None for one in both) else operation(*both)

    return combine


def recurrent(operation: Rule) -> Rule:
    """Return the rule for `operation`, one of torch's recurrent layers, which runs all its steps once per adapter.

    `input` has the shape (steps, samples, in), or (samples, steps, in) if `batch_first`; the tensors of `state` have
    the shape (layers, samples, hidden).
    """

    def run(context: "MixedContext", input: Tensor, state: Any, weights: Any, *settings: Any) -> Any:
        states = list(state) if isinstance(state, (tuple, list)) else [state]
        axis = 0 if settings[-1] is True else 1
        size = context.groups.size
        shapes = [tuple(tensor.shape) for tensor in (input, *states) if isinstance(tensor, Tensor)]
        aligned = input.ndim == 3 and input.shape[axis] == size and all(one.shape[1] == size for one in states)
        if not aligned:
            lists = [one for one in (weights, *settings) if isinstance(one, (tuple, list))]
            raise ParameterMismatchError(
                f"{context.name(*(tensor for one in lists for tensor in one))}: no mixed batch in "
                f"{operation.__name__} with inputs and states {shapes}: they are packed, or dimension {axis} of the "
                f"inputs is not the {size} samples"
            )
        found: list[Tensor] = []
        for adapter, samples in context.groups.on(input.device).items():
            own = [one.index_select(1, samples) for one in states]
            varying = [(weight, context.varying(weight)) for weight in weights]
            its = [weight if meaning is None else meaning.under(adapter) for weight, meaning in varying]
            part = operation(input.index_select(axis, samples), own if len(own) > 1 else own[0], its, *settings)
            for place, one in enumerate(part):
                along = axis if place == 0 else 1
                if len(found) == place:
                    found.append(one.new_empty(*one.shape[:along], size, *one.shape[along + 1 :]))
                found[place].index_copy_(along, samples, one)
        return tuple(found)

    return run


def per_sample(context: "MixedContext", tensor: Tensor) -> Tensor:
    """Repeat a small tensor for each sample: (samples, *shape), or (1, *shape) if no adapter changes it."""
    varying = context.varying(tensor)
    if varying is None:
        return tensor.unsqueeze(0)
    copies = spread(varying.base, varying.sparse or {}, context.groups)
    if varying.sparse is None:
        for adapter, samples in context.groups.on(copies.device).items():
            if adapter in varying.changes:
                copies[samples] = varying.under(adapter)
    return copies


def sparse_changes(context: "MixedContext", weight: Tensor, bias: Tensor | None) -> tuple[Changes, Changes] | None:
    """Return both tensors' sparse changes, none for one that does not vary; None if one varies in another way."""
    found: list[Changes] = []
    for tensor in (weight, bias):
        varying = context.varying(tensor)
        changes: Changes | None = {} if varying is None else varying.sparse
        # A tensor computed from the parameter (cast, reshaped) has the changes at other places than the parameter.
        if changes is None or context.is_derived(tensor):
            return None
        found.append(changes)
    return found[0], found[1]


def _with_tuned_copies(
    context: "MixedContext", layer: Callable[..., Tensor], input: Tensor, *parameters: Tensor | None
) -> Tensor:
    """Compute `layer(input, *parameters)` once per adapter, with the adapter's parameters."""
    groups = context.groups
    # A model that computes gradients itself (forces) needs each adapter's weights again.
    recorded = torch.is_grad_enabled() and input.requires_grad

    def of_each_adapter(parameter: Tensor | None) -> Iterable[Tensor | None]:
        varying = context.varying(parameter)
        if varying is None:
            return repeat(parameter)
        return map(varying.under, groups.members) if recorded else varying.in_turn(groups.members)

    output: Tensor | None = None
    for samples, *own in zip(groups.on(input.device).values(), *map(of_each_adapter, parameters), strict=False):
        if len(samples) == groups.size:
            return layer(input, *own)
        part = layer(input.index_select(0, samples), *own)
        if output is None:
            output = part.new_empty(groups.size, *part.shape[1:])
        output.index_copy_(0, samples, part)
    assert output is not None
    return output


def _scale_and_shift(
    context: "MixedContext", normal: Tensor, weight: Tensor | None, bias: Tensor | None, after: int
) -> Tensor:
    """Compute `normal * weight + bias`, with their dimensions aligned to those of `normal` from `after` on."""

    def aligned(tensor: Tensor) -> Tensor:
        copies = per_sample(context, tensor)
        behind = normal.ndim - after - tensor.ndim
        return copies.view(len(copies), *[1] * (after - 1), *tensor.shape, *[1] * behind)

    if weight is None or bias is None:
        return normal if weight is None else normal.mul_(aligned(weight))
    return torch.addcmul(aligned(bias), normal, aligned(weight))


def _each(setting: int | Sequence[int], dimensions: int) -> list[int]:
    values = [setting] if isinstance(setting, int) else list(setting)
    return values * dimensions if len(values) == 1 else values


def _both_sides(
    padding: str | int | Sequence[int], kernel: Sequence[int], dilation: Sequence[int]
) -> list[tuple[int, int]]:
    if padding == "same":
        # For an even kernel, torch puts the odd zero at the end.
        totals = [step * (size - 1) for size, step in zip(kernel, dilation, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    if isinstance(padding, str):
        return [(0, 0)] * len(kernel)
    return [(side, side) for side in _each(padding, len(kernel))]

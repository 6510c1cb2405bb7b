"""The sparse half of `h = w0 x + w_sp x` (Eq. 15): each adapter's product, added to its own samples.

A linear product gathers and sums with `embedding_bag`, over the outputs that change only. Of what torch has, that was
the quickest from 0.1 % to 1 % of the weights, and needs no sparse library of the platform.
"""

from collections.abc import Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor
from torch.nn import functional

from rst.mixed.change import SparseChange
from rst.mixed.sample_groups import SampleGroups

Changes = Mapping[str, SparseChange]

_MOST_GATHERED = 1 << 24  # elements of a convolution's input at a time


def add_linear(
    output: Tensor, inputs: Tensor, weight: Changes, bias: Changes, groups: SampleGroups, *, transposed: bool = False
) -> None:
    """Add to `output` (samples, ..., out) what the changes of weight and bias make of `inputs` (samples, ..., in).

    Args:
        output: changed in place.
        inputs: as the layer got them.
        weight: of a matrix (out, in), or (in, out) if transposed.
        bias: of a vector (out,).
        groups: the batch.
        transposed: which of the two the weight is.
    """
    samples = groups.on(inputs.device)

    def add(adapter: str, part: Tensor) -> None:
        flat = part.view(-1, part.shape[-1])  # samples and tokens alike: the adapter is the same for all of them
        if adapter in weight:
            bags = weight[adapter].by_column if transposed else weight[adapter].by_row
            own = inputs.index_select(0, samples[adapter]).flatten(0, -2)
            flat.index_add_(1, bags.outputs, bags.sums(own).t().to(flat.dtype).contiguous())
        if adapter in bias:
            flat.index_add_(1, bias[adapter].rows, bias[adapter].residual.to(flat.dtype).expand(len(flat), -1))

    groups.update(output, [*weight, *bias], add)


def add_convolution(
    output: Tensor,
    inputs: Tensor,
    weight: Changes,
    bias: Changes,
    groups: SampleGroups,
    *,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    channel_groups: int,
) -> None:
    """Add to `output` (samples, out, *places) what the changes make of `inputs` (samples, in, *size).

    Args:
        output: changed in place.
        inputs: as the layer got them.
        weight: of (out, in / channel_groups, *kernel).
        bias: of (out,).
        groups: the batch.
        kernel: size in each spatial dimension, as are the next three.
        stride: steps between places.
        padding: zeros before and after.
        dilation: steps between the kernel's elements.
        channel_groups: of the convolution.
    """
    windows = _windows(inputs, kernel, stride, padding, dilation)
    samples = groups.on(inputs.device)
    places = output[0, 0].numel()
    spatial = [1] * len(kernel)

    def add(adapter: str, part: Tensor) -> None:
        if adapter in weight:
            change = weight[adapter]
            own, taps = samples[adapter][:, None], change.taps(channel_groups)
            # What the kernel sees is gathered for a part of the changes at a time, to bound the memory.
            step = max(1, _MOST_GATHERED // max(1, len(part) * places))
            for start in range(0, change.rows.numel(), step):
                chunk = slice(start, start + step)
                where = (own, *(tap[chunk] for tap in taps))
                seen = windows[where].to(change.residual.dtype) * change.residual[chunk].view(-1, *spatial)
                part.index_add_(1, change.rows[chunk], seen.to(part.dtype))
        if adapter in bias:
            change = bias[adapter]
            addend = change.residual.to(part.dtype).view(1, -1, *spatial)
            part.index_add_(1, change.rows, addend.expand(len(part), -1, *part.shape[2:]))

    groups.update(output, [*weight, *bias], add)


def _windows(
    inputs: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
) -> Tensor:
    """What each element of the kernel sees at each place: a view (samples, in, *kernel, *places) of padded inputs."""
    dimensions = len(kernel)
    windows = functional.pad(inputs, [*chain.from_iterable(reversed(padding))])
    for axis in range(dimensions):
        span = dilation[axis] * (kernel[axis] - 1) + 1
        windows = windows.unfold(2 + axis, span, stride[axis])[..., :: dilation[axis]]
    axes = range(2, 2 + 2 * dimensions)
    return windows.permute(0, 1, *axes[dimensions:], *axes[:dimensions])


def put_embeddings(output: Tensor, ids: Tensor, weight: Changes, groups: SampleGroups) -> None:
    """Put each adapter's own elements into `output` (samples, ..., width), the base's rows for `ids` (samples, ...)."""
    samples = groups.on(ids.device)

    def put(adapter: str, part: Tensor) -> None:
        change, tokens = weight[adapter], ids.index_select(0, samples[adapter]).flatten().long()
        # Entries are sorted by row, so those of a token's row are the run from `first`: listed without a loop.
        first = torch.searchsorted(change.rows, tokens)
        counts = torch.searchsorted(change.rows, tokens, right=True) - first
        token = torch.arange(len(tokens), device=ids.device).repeat_interleave(counts)
        before = (counts.cumsum(0) - counts)[token]
        entry = torch.arange(len(token), device=ids.device) - before + first[token]
        part.view(len(tokens), -1)[token, change.columns[entry]] = change.values[entry].to(part.dtype)

    groups.update(output, list(weight), put)

"""The sparse half of `h = w0 x + w_sp x` (Eq. 15): one product per layer, for all adapters of a batch at once.

The adapters' sparse matrices lie on the diagonal of a single one, whose rows are samples times outputs and whose
columns are samples times inputs. A linear product gathers and sums with `embedding_bag`, over the outputs that change
only. This was faster than torch's CSR product, which needs other layouts of inputs and outputs, and it needs no sparse
library of the platform.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from torch import Tensor
from torch.nn import functional

from rst.mixed.change import SparseChange
from rst.mixed.sample_groups import SampleGroups
from rst.numerics.bags import Bags

Changes = Mapping[str, SparseChange]

_INPUTS = 1 << 19  # elements of a linear layer's inputs at a time, so that they stay in the cache of a core
_MOST_GATHERED = 1 << 24  # elements of a convolution's input at a time


def add_linear(
    output: Tensor, inputs: Tensor, weight: Changes, bias: Changes, groups: SampleGroups, *, transposed: bool = False
) -> None:
    """Add to `output` (samples, ..., out) the products of the changes with `inputs` (samples, ..., in).

    Args:
        output: a contiguous tensor, which is changed in place.
        inputs: the inputs of the layer.
        weight: the changes of a matrix (out, in), or (in, out) if transposed.
        bias: the changes of a vector (out,).
        groups: the samples of each adapter.
        transposed: whether the weight is (in, out).
    """
    if not output.numel():
        return
    into = output.view(groups.size, -1, output.shape[-1])
    if weight:
        _add_products(into, inputs.reshape(*into.shape[:2], -1), weight, groups, transposed)
    if bias:
        joint = groups.once(("vector", id(bias)), None, lambda: _JointVectors.of(bias, groups))
        added = joint.values.to(into.dtype)[:, None].expand(-1, into.shape[1], -1)
        into.scatter_add_(2, joint.places[:, None].expand_as(added), added)


def _add_products(output: Tensor, inputs: Tensor, weight: Changes, groups: SampleGroups, transposed: bool) -> None:
    tokens, width = inputs.shape[1:]
    together = max(1, _INPUTS // max(1, tokens * width))
    together = min(1 << together.bit_length() - 1, groups.size)
    blocks = groups.once(
        ("matrix", id(weight), transposed), together, lambda: _blocks(weight, groups, together, width, transposed)
    )
    for block in blocks:
        own = inputs[block.samples].to(block.weights.dtype)
        # Each input of each matrix has a row, which holds the tokens that it is multiplied with, side by side.
        rows = own.reshape(block.matrices, -1, width).transpose(1, 2).contiguous().view(block.matrices * width, -1)
        sums = functional.embedding_bag(
            block.sources, rows, block.starts, mode="sum", per_sample_weights=block.weights
        ).view(block.matrices, block.outputs.shape[1], -1, tokens)
        added = sums.transpose(1, 2).reshape(len(own), -1, tokens).to(output.dtype).transpose(1, 2)
        places = block.outputs[:, None].expand(len(own), tokens, -1)
        if isinstance(block.samples, slice):
            output[block.samples].scatter_add_(2, places, added)
        else:
            output[block.samples] = output[block.samples].scatter_add_(2, places, added)


@dataclass(frozen=True)
class _Block:
    """The sparse matrices of some samples, as bags: one for all, or one per sample on the diagonal of a large one.

    Attributes:
        samples: the samples.
        matrices: the number of matrices: 1, or as many as samples.
        outputs: the output of each bag, shape (matrices, bags). Every matrix has as many bags as the one with the most;
            the additional ones are empty.
        starts: where the entries of each bag begin, shape (matrices * bags,).
        sources: the input of each entry, counted from the first matrix on, shape (nnz,).
        weights: the weight of each entry, shape (nnz,).
    """

    samples: slice | Tensor
    matrices: int
    outputs: Tensor
    starts: Tensor
    sources: Tensor
    weights: Tensor


def _blocks(weight: Changes, groups: SampleGroups, together: int, width: int, transposed: bool) -> list[_Block]:
    """Return blocks: adapters with many samples have their own; the others share some, with a copy for each sample.

    `groups` determines how many copies are made, and so how large the joint index is.
    """
    bags = {name: change.by_column if transposed else change.by_row for name, change in weight.items()}
    blocks, shared = [], []
    for name, samples in groups.members.items():
        if name not in bags or not len(bags[name].outputs):
            continue
        if len(samples) <= min(groups.most_copies, together - 1):
            shared += [(sample, bags[name]) for sample in samples]
            continue
        for start in range(0, len(samples), together):
            blocks.append(_block(samples[start : start + together], [bags[name]], width))
    shared.sort(key=lambda of_sample: of_sample[0])
    for start in range(0, len(shared), together):
        own, found = zip(*shared[start : start + together], strict=True)
        blocks.append(_block(own, found, width))
    return blocks


def _block(samples: Sequence[int], found: Sequence[Bags], width: int) -> _Block:
    count, device = len(found), found[0].outputs.device
    bags = torch.tensor([len(own.outputs) for own in found], device=device)
    entries = torch.tensor([len(own.sources) for own in found], device=device)
    ends = entries.cumsum(0)
    used = torch.arange(int(bags.max()), device=device) < bags[:, None]
    outputs, starts = torch.zeros_like(used, dtype=torch.int64), ends[:, None].repeat(1, used.shape[1])
    outputs[used] = torch.cat([own.outputs for own in found])
    starts[used] = torch.cat([own.starts for own in found]) + (ends - entries).repeat_interleave(bags)
    matrix = torch.arange(count, device=device).repeat_interleave(entries)
    sources = torch.cat([own.sources for own in found]) + matrix * width
    # With 32 bits, each product reads half the bytes.
    small = torch.int32 if max(int(ends[-1]), int(sources.max())) < 2**31 else torch.int64
    adjoin = samples[-1] - samples[0] + 1 == len(samples)
    where = slice(samples[0], samples[-1] + 1) if adjoin else torch.tensor(samples, device=device)
    weights = found[0].weights if count == 1 else torch.cat([own.weights for own in found])
    return _Block(where, count, outputs, starts.flatten().to(small), sources.to(small), weights)


@dataclass(frozen=True)
class _JointVectors:
    """The changes of a vector for each sample, padded with zeros to the largest number of changes.

    Attributes:
        places: the positions in the vector, shape (samples, changes).
        values: the values to be added there, of the same shape.
    """

    places: Tensor
    values: Tensor

    @classmethod
    def of(cls, bias: Changes, groups: SampleGroups) -> "_JointVectors":
        first = next(iter(bias.values())).residual
        most = max(change.rows.numel() for change in bias.values())
        places = torch.zeros(groups.size, most, dtype=torch.int64, device=first.device)
        values = first.new_zeros(groups.size, most)
        for adapter, samples in groups.on(first.device).items():
            if adapter in bias:
                own = bias[adapter]
                places[samples, : own.rows.numel()], values[samples, : own.rows.numel()] = own.rows, own.residual
        return cls(places, values)


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
    """Add the convolutions of the changes with `inputs` (samples, in, *size) to `output` (samples, out, *places).

    Args:
        output: a tensor that is changed in place.
        inputs: the inputs of the layer.
        weight: the changes of a weight (out, in / channel_groups, *kernel).
        bias: the changes of a bias (out,).
        groups: the samples of each adapter.
        kernel: the size of the kernel in each spatial dimension. The next three have one number per dimension too.
        stride: the steps between places.
        padding: the zeros before and after.
        dilation: the steps between the kernel's elements.
        channel_groups: the number of groups of the convolution.
    """
    places = output[0, 0].numel()
    if weight:
        windows = _windows(inputs, kernel, stride, padding, dilation)
        # The windows are gathered for a part of the changes at a time, to bound the memory.
        step = max(1, _MOST_GATHERED // max(1, places))
        parts: Iterable[_KernelPart] = _kernel_parts(weight, groups, channel_groups, step)
        if max(len(groups.members[name]) for name in weight) <= groups.most_copies:
            parts = groups.once(("kernel", id(weight), channel_groups), step, partial(list, parts))
        for part in parts:
            seen = windows[part.taps].to(part.bags.weights.dtype).flatten(1)
            sums = functional.embedding_bag(
                part.bags.sources, seen, part.bags.starts, mode="sum", per_sample_weights=part.bags.weights
            )
            output[part.samples, part.outputs] += sums.to(output.dtype).view(-1, *output.shape[2:])
    if bias:
        joint = groups.once(("vector", id(bias)), None, lambda: _JointVectors.of(bias, groups))
        added = output.new_zeros(output.shape[:2]).scatter_add_(1, joint.places, joint.values.to(output.dtype))
        output += added.view(*added.shape, *[1] * len(kernel))


@dataclass(frozen=True)
class _KernelPart:
    """Some changed elements of the kernels of all samples.

    Attributes:
        taps: the sample, the input channel and the place in the kernel of each element, all of shape (nnz,).
        bags: the elements that contribute to the same output channel of the same sample.
        samples, outputs: the sample and the output channel of each bag, shape (bags,).
    """

    taps: tuple[Tensor, ...]
    bags: Bags
    samples: Tensor
    outputs: Tensor


def _kernel_parts(weight: Changes, groups: SampleGroups, channel_groups: int, step: int) -> Iterator[_KernelPart]:
    found: list[tuple[int, SparseChange, slice]] = []
    left = step
    for sample, change in groups.of_samples(weight):
        start, end = 0, change.rows.numel()
        while start < end:
            stop = min(start + left, end)
            found.append((sample, change, slice(start, stop)))
            left -= stop - start
            start = stop
            if not left:
                yield _kernel_part(found, channel_groups)
                found, left = [], step
    if found:
        yield _kernel_part(found, channel_groups)


def _kernel_part(found: Sequence[tuple[int, SparseChange, slice]], channel_groups: int) -> _KernelPart:
    every = [[tap[chunk] for tap in change.taps(channel_groups)] for _, change, chunk in found]
    taps = [torch.cat(one) for one in zip(*every, strict=True)]
    rows = torch.cat([change.rows[chunk] for _, change, chunk in found])
    residual = torch.cat([change.residual[chunk] for _, change, chunk in found])
    counts = torch.tensor([chunk.stop - chunk.start for *_, chunk in found], device=rows.device)
    sample = torch.tensor([sample for sample, *_ in found], device=rows.device).repeat_interleave(counts)
    height = found[0][1].shape[0]
    bags = Bags.of(sample * height + rows, torch.arange(len(rows), device=rows.device), residual)
    return _KernelPart((sample, *taps), bags, bags.outputs // height, bags.outputs % height)


def _windows(
    inputs: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
) -> Tensor:
    """View padded inputs as what each kernel element sees at each place: (samples, in, *kernel, *places)."""
    dimensions = len(kernel)
    windows = functional.pad(inputs, [*chain.from_iterable(reversed(padding))])
    for axis in range(dimensions):
        span = dilation[axis] * (kernel[axis] - 1) + 1
        windows = windows.unfold(2 + axis, span, stride[axis])[..., :: dilation[axis]]
    axes = range(2, 2 + 2 * dimensions)
    return windows.permute(0, 1, *axes[dimensions:], *axes[:dimensions])


def put_embeddings(output: Tensor, ids: Tensor, weight: Changes, groups: SampleGroups) -> None:
    """Write each adapter's elements into `output` (samples, ..., width), the base's rows for `ids` (samples, ...)."""
    if not weight:
        return
    table = groups.once(("table", id(weight)), None, lambda: _JointTable.of(weight, groups))
    tokens = (ids.reshape(groups.size, -1).long() + table.first_rows[:, None]).flatten()
    # Entries are sorted by row, so those of a token's row are a run that begins at `first`; no loop is needed.
    first = torch.searchsorted(table.rows, tokens)
    counts = torch.searchsorted(table.rows, tokens, right=True) - first
    token = torch.arange(len(tokens), device=ids.device).repeat_interleave(counts)
    before = (counts.cumsum(0) - counts)[token]
    entry = torch.arange(len(token), device=ids.device) - before + first[token]
    output.view(len(tokens), -1)[token, table.columns[entry]] = table.values[entry].to(output.dtype)


@dataclass(frozen=True)
class _JointTable:
    """The changes of the adapters' embeddings, with one table after the other.

    Attributes:
        first_rows: where each sample's table begins, shape (samples,). The base's table comes last and has no changes.
        rows, columns, values: the row, the column and the value of each change, sorted by row, shape (nnz,).
    """

    first_rows: Tensor
    rows: Tensor
    columns: Tensor
    values: Tensor

    @classmethod
    def of(cls, weight: Changes, groups: SampleGroups) -> "_JointTable":
        adapters = [name for name in dict.fromkeys(groups.names) if name in weight]
        device, height = next(iter(weight.values())).rows.device, next(iter(weight.values())).shape[0]
        begins = {name: place * height for place, name in enumerate(adapters)}
        first = [begins.get(name, len(adapters) * height) for name in groups.names]
        rows = [weight[name].rows + begins[name] for name in adapters]
        columns, values = [weight[name].columns for name in adapters], [weight[name].values for name in adapters]
        empty = [torch.empty(0, dtype=torch.int64, device=device)] * (not adapters)
        return cls(
            torch.tensor(first, device=device),
            torch.cat(rows + empty),
            torch.cat(columns + empty),
            torch.cat(values or [next(iter(weight.values())).values[:0]]),
        )


def spread(base: Tensor, changes: Changes, groups: SampleGroups) -> Tensor:
    """Return the tensor as each sample has it, shape (samples, *shape)."""
    copies = base.detach().unsqueeze(0).repeat(groups.size, *[1] * base.ndim)
    found = groups.of_samples(changes)
    if found:
        places, values = groups.once(
            ("spread", id(changes)),
            None,
            lambda: (
                torch.cat([change.positions + sample * base.numel() for sample, change in found]),
                torch.cat([change.values for _, change in found]),
            ),
        )
        copies.view(-1)[places] = values
    return copies

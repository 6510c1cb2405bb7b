"""Residuals whose addition gives back the tuned weight bit for bit, and what no residual can reach.

`w0 + fl(wt - w0)` is `wt` whenever `w0 / 2 <= wt <= 2 w0` (Sterbenz' lemma), and often but not always elsewhere.
Therefore every residual is tested; one that fails is replaced by a neighbour that works. If none does (rounding
absorbed the small operand, `wt` is -0.0, an infinity is involved), the position is reported for the overlay of absolute
values.
"""

import torch
from torch import Tensor

RESIDUAL_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_INTEGER_OF_WIDTH = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_NEIGHBOURS = (1, -1)


def bits(tensor: Tensor) -> Tensor:
    """View a tensor of any non-complex dtype as integers of the same width, same shape, same memory."""
    return tensor.view(_INTEGER_OF_WIDTH[tensor.element_size()])


def as_bytes(tensor: Tensor) -> Tensor:
    """Return the elements in row-major order as uint8 of shape (bytes,); all parts of tensors that are not strided."""
    # `is_plain`, inlined: every swap passes through here.
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized or tensor.is_meta:
        return torch.cat([torch.empty(0, dtype=torch.uint8), *map(as_bytes, plain_parts(tensor))])
    plain = tensor.detach().resolve_conj().resolve_neg()
    if plain.element_size() == 1:
        plain = plain.view(torch.uint8)  # not every dtype of this width can be copied
    flat = plain.contiguous().reshape(-1)
    return flat.view(torch.uint8) if flat.numel() else flat.new_empty(0, dtype=torch.uint8)  # whose stride may be 0


def is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor is plain strided memory: not sparse, nested, quantised or without values."""
    return tensor.layout == torch.strided and not (tensor.is_nested or tensor.is_quantized or tensor.is_meta)


def plain_parts(tensor: Tensor) -> list[Tensor]:
    """Return the plain tensors that hold all values of a tensor of any layout; none for the meta device."""
    if tensor.is_meta:
        return []
    tensor = tensor.detach()
    if tensor.is_nested:
        return [part for one in tensor.unbind() for part in plain_parts(one)]
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    if tensor.is_quantized:
        return [tensor.int_repr(), *_scales(tensor)]
    return [tensor if tensor.layout == torch.strided else tensor.to_dense()]


def _scales(tensor: Tensor) -> list[Tensor]:
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return [torch.tensor([tensor.q_scale(), tensor.q_zero_point()], dtype=torch.float64)]
    return [tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()]


def bytes_of_tensor(tensor: Tensor) -> int:
    """Return the bytes of a tensor of any layout."""
    return tensor.nbytes if is_plain(tensor) else sum(part.nbytes for part in plain_parts(tensor))


def same_form(left: Tensor, right: Tensor) -> bool:
    """Return whether two tensors of any layout agree in dtype, layout and shape."""
    kinds = [(one.dtype, one.layout, one.is_nested, one.is_quantized) for one in (left, right)]
    if kinds[0] != kinds[1]:
        return False
    if left.is_nested:  # has no shape of its own
        return [part.shape for part in plain_parts(left)] == [part.shape for part in plain_parts(right)]
    return left.shape == right.shape


def bit_equal(left: Tensor, right: Tensor) -> bool:
    """Return whether two tensors agree in dtype, shape and every bit (so NaN equals NaN and -0.0 differs from 0.0).

    Tensors may have any dtype and layout; two on the meta device are equal if dtype and shape are.
    """
    if not same_form(left, right) or left.is_meta != right.is_meta:
        return False
    if is_plain(left) and not left.is_complex():
        return torch.equal(bits(left), bits(right))
    return torch.equal(as_bytes(left), as_bytes(right))


def ordered_keys(tensor: Tensor) -> Tensor:
    """Map floats to signed integers of their width in numerical order; a bijection, -0.0 right below +0.0.

    Integers are their own keys (unsigned ones modulo 2^width).
    """
    raw = bits(tensor)
    if not tensor.is_floating_point():
        return raw
    return torch.where(raw < 0, raw ^ torch.iinfo(raw.dtype).max, raw)


def from_ordered_keys(keys: Tensor, dtype: torch.dtype) -> Tensor:
    """Invert `ordered_keys`."""
    if dtype == torch.bool:  # steps in an untrusted file may give neither 0 nor 1
        return keys != 0
    if not dtype.is_floating_point:
        return keys.view(dtype)
    return torch.where(keys < 0, keys ^ torch.iinfo(keys.dtype).max, keys).view(dtype)


def step_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the signed integer dtype of the same width, used for keys of `dtype` and their differences."""
    return _INTEGER_OF_WIDTH[dtype.itemsize]


def exact_residuals(base: Tensor, tuned: Tensor) -> tuple[Tensor, Tensor]:
    """Find `r` with `base + r` equal to `tuned` bit for bit, as far as one exists near `tuned - base`.

    Args:
        base: w0, a 1-D tensor of one of `RESIDUAL_DTYPES`.
        tuned: wt, same shape and dtype.

    Returns:
        `(residuals, failed)`: finite residuals of Eq. 16 in the same dtype, and a bool mask of the entries they miss.
    """
    residuals = tuned - base
    failed = ~(_reaches(base, residuals, tuned) & residuals.isfinite())
    positions = failed.nonzero().squeeze(1)
    for step in _NEIGHBOURS:
        if positions.numel() == 0:
            break
        keys = ordered_keys(residuals[positions])
        candidate = from_ordered_keys(keys + step, base.dtype)
        found = _reaches(base[positions], candidate, tuned[positions]) & candidate.isfinite()
        hits = positions[found]
        residuals[hits] = candidate[found]
        failed[hits] = False
        positions = positions[~found]
    # An infinite residual cannot be stored as a number to add; only the overlay holds the entry.
    residuals[~residuals.isfinite()] = 0.0
    return residuals, failed


def _reaches(base: Tensor, residuals: Tensor, tuned: Tensor) -> Tensor:
    return bits(base + residuals) == bits(tuned)

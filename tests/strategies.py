"""Hypothesis strategies for weights: any bit pattern that a checkpoint can hold."""

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from rst.numerics.exactness import RESIDUAL_DTYPES

FLOAT_DTYPES = list(RESIDUAL_DTYPES)
_RAW = {8: (np.int64, torch.int64), 4: (np.int32, torch.int32), 2: (np.int16, torch.int16)}
# Zeros of both signs, subnormals, the largest numbers, infinities, one, and one's neighbours.
_SPECIAL = [0.0, -0.0, 1.0, -1.0, float("inf"), float("-inf")]


@st.composite
def vectors(draw: st.DrawFn, dtype: torch.dtype, size: int, *, nan: bool = False) -> Tensor:
    """Draw a 1-D tensor: random bits, with special values and subnormals mixed in; NaN only on request."""
    numpy_raw, torch_raw = _RAW[dtype.itemsize]
    info = np.iinfo(numpy_raw)
    raw = draw(hnp.arrays(numpy_raw, size, elements=st.integers(info.min, info.max)))
    tensor = torch.from_numpy(raw).to(torch_raw).view(dtype).clone()
    specials = torch.tensor([*_SPECIAL, torch.finfo(dtype).max, -torch.finfo(dtype).max], dtype=dtype)
    smallest = torch.tensor([1, 3], dtype=torch_raw).view(dtype)
    pool = torch.cat([specials, smallest, -smallest])
    picks = torch.tensor(draw(st.lists(st.integers(-2 * len(pool), len(pool) - 1), min_size=size, max_size=size)))
    chosen = pool[picks.clamp(min=0).long()] if size else tensor
    tensor = torch.where(picks.reshape(-1) >= 0, chosen, tensor) if size else tensor
    return tensor if nan else torch.where(tensor.isnan(), torch.ones_like(tensor), tensor)


@st.composite
def pairs(draw: st.DrawFn, max_size: int = 40) -> tuple[Tensor, Tensor]:
    """Draw `(base, tuned)` of one dtype and shape: unrelated, equal, close, or sign-flipped entry by entry."""
    dtype = draw(st.sampled_from(FLOAT_DTYPES))
    size = draw(st.integers(0, max_size))
    base = draw(vectors(dtype, size))
    other = draw(vectors(dtype, size))
    close = torch.nextafter(base, other)
    choices = [base, other, close, -base]
    kinds = draw(st.lists(st.integers(0, len(choices) - 1), min_size=size, max_size=size))
    tuned = torch.stack([choices[kind][i] for i, kind in enumerate(kinds)]) if size else other
    return base, tuned

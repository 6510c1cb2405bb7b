"""How often `w0 + (wt - w0)` is not `wt`, by how far the weight moved and in three dtypes."""

from pathlib import Path

import torch
from matplotlib import pyplot as plt
from torch import Tensor

from docs.figures.style import COLORS, save, table
from rst import ParameterDelta

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
OCTAVES = 6
BINS = 8 * OCTAVES
SAMPLES = 1 << 16


def draw(folder: Path) -> None:
    """Write `exactness.png`, and the table beside it."""
    torch.manual_seed(0)
    figure, axis = plt.subplots(figsize=(7.2, 3.8))
    axis.axvspan(0.5, 2, color="0.9", label="half to twice w0: always exact (Sterbenz)")
    for dtype, color, width in zip(DTYPES, COLORS, (6, 3, 1.2), strict=True):
        name = str(dtype).removeprefix("torch.")
        axis.plot(*_by_ratio(dtype), color=color, linewidth=width, label=name)
    axis.set_xscale("log", base=2)
    axis.set_xlabel("tuned weight / pretrained weight")
    axis.set_ylabel("% of weights that w0 + (wt - w0) misses")
    axis.legend(fontsize=8, frameon=False)
    save(figure, folder / "exactness.png")
    rows = [_fine_tuned(dtype) for dtype in DTYPES]
    header = ("dtype", "changed weights", "plain addition misses", "no residual near it reaches")
    (folder / "exactness.md").write_text(table(header, rows))


def _by_ratio(dtype: torch.dtype) -> tuple[list[float], list[float]]:
    """Ratios of tuned to pretrained weight, and the share that plain addition misses there, in per cent."""
    ratios, shares = [], []
    edges = torch.linspace(-OCTAVES, OCTAVES, BINS + 1)
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        base = 0.02 * torch.randn(SAMPLES)
        tuned = base * torch.exp2(torch.empty(SAMPLES).uniform_(low, high))
        missed, _, changed = _count(base.to(dtype), tuned.to(dtype))
        ratios.append(2 ** ((low + high) / 2))
        shares.append(100 * missed / changed)
    return ratios, shares


def _fine_tuned(dtype: torch.dtype) -> tuple[str, ...]:
    base = 0.02 * torch.randn(4_000_000, dtype=torch.float64)
    tuned = base + 0.002 * torch.randn_like(base)
    missed, left, changed = _count(base.to(dtype), tuned.to(dtype))
    name = str(dtype).removeprefix("torch.")
    return name, f"{changed:,}", f"{missed:,} ({missed / changed:.2%})", f"{left:,} ({left / changed:.2%})"


def _count(base: Tensor, tuned: Tensor) -> tuple[int, int, int]:
    """Weights that plain addition misses, that no residual reaches, and that changed."""
    missed = (base + (tuned - base)) != tuned
    delta = ParameterDelta.between("weight", base, tuned)
    return int(missed.sum()), delta.exact_indices.numel(), delta.nnz

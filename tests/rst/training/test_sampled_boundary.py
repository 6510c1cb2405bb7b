"""The boundary that a training step estimates: near the exact one, whatever the weights' layout."""

import pytest
import torch
from torch import Tensor

from rst.training.sampled_boundary import sampled_boundary

SHAPES = {"square": (1024, 1024), "wide": (96, 4800), "bias": (96,), "empty": (0,)}


def weights(dtype: torch.dtype = torch.float32) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Changes that depend on the column, as those of real layers do, in matrices of which one is transposed."""
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in SHAPES.items()}
    base["wide"] = base["wide"].t()
    tuned = {}
    for name, origin in base.items():
        change = torch.randn(origin.shape, generator=generator, dtype=dtype)
        tuned[name] = (
            origin + 1e-3 * change * torch.linspace(0.1, 3, max(origin.shape[-1], 1), dtype=dtype)[: origin.shape[-1]]
        )
    return tuned, base


def kept(tuned: dict[str, Tensor], base: dict[str, Tensor], threshold: float) -> int:
    return sum(int(((tuned[name] - base[name]).abs() > threshold).sum()) for name in base)


@pytest.mark.parametrize("ratio", [0.5, 0.05, 0.005])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_about_the_share_is_kept_at_every_step(ratio: float, dtype: torch.dtype) -> None:
    tuned, base = weights(dtype)
    wanted = ratio * sum(weight.numel() for weight in base.values())
    found = {}
    for step in range(1, 6):
        estimate = sampled_boundary(tuned, base, ratio, step=step)
        assert estimate is not None
        assert estimate == sampled_boundary(tuned, base, ratio, step=step)
        found[step] = estimate[0]
        assert kept(tuned, base, found[step]) == pytest.approx(wanted, rel=0.1)
    assert len(set(found.values())) > 1, "every step looked at the same weights"


@pytest.mark.parametrize(
    ("dtype", "ratio"), [(torch.bfloat16, 0.05), (torch.float32, 1e-5)], ids=["half precision", "few are kept"]
)
def test_where_a_sample_says_little_there_is_none(dtype: torch.dtype, ratio: float) -> None:
    assert sampled_boundary(*weights(dtype), ratio, step=1) is None


def test_a_share_of_one_keeps_everything() -> None:
    estimate = sampled_boundary(*weights(), 1.0, step=1)
    assert estimate is not None
    assert estimate[0] < 0

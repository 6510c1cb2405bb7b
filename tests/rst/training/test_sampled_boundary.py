"""The boundary that a training step estimates: near the exact one, whatever the weights' layout."""

import pytest
import torch
from torch import Tensor

from rst.training.sampled_boundary import boundary_in_training
from rst.training.selection import boundary

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
        found[step], ties = boundary_in_training(tuned, base, ratio, step=step)
        assert kept(tuned, base, found[step]) == pytest.approx(wanted, rel=0.1)
        assert not ties
        assert boundary_in_training(tuned, base, ratio, step=step)[0] == found[step]
    assert len(set(found.values())) > 1, "every step looked at the same weights"


@pytest.mark.parametrize(
    "case", [{"dtype": torch.bfloat16, "ratio": 0.05}, {"dtype": torch.float32, "ratio": 1e-5}], ids=["half", "few"]
)
def test_where_a_sample_says_little_the_boundary_is_exact(case: dict[str, object]) -> None:
    tuned, base = weights(case["dtype"])  # type: ignore[arg-type]
    ratio = float(case["ratio"])  # type: ignore[arg-type]
    threshold, ties = boundary_in_training(tuned, base, ratio, step=1)
    exact, exact_ties = boundary(tuned, base, ratio)
    assert threshold == exact
    assert [places.tolist() for _, places, _ in ties] == [places.tolist() for _, places, _ in exact_ties]


def test_a_share_of_one_keeps_everything() -> None:
    tuned, base = weights()
    assert boundary_in_training(tuned, base, 1.0, step=1)[0] < 0

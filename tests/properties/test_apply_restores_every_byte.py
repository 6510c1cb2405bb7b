"""Swapping deltas on a live module leaves the base's bytes alone, however often and in whatever order."""

import random

import torch
from hypothesis import given
from torch import nn

from rst import SparseDelta, export
from rst.numerics.exactness import bit_equal
from tests.strategies import FLOAT_DTYPES, pairs


def module_of(weights: torch.Tensor) -> nn.Module:
    module = nn.Module()
    module.w = nn.Parameter(weights.clone(), requires_grad=False)
    return module


@given(pairs())
def test_apply_gives_the_tuned_weights_and_remove_the_base(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    base, tuned = pair
    module = module_of(base)
    applied = export({"w": base}, {"w": tuned}).apply(module)
    assert bit_equal(module.w.data, tuned)
    applied.remove()
    assert bit_equal(module.w.data, base)
    applied.remove()
    assert bit_equal(module.w.data, base)


def test_a_thousand_random_swaps_leave_the_base_untouched() -> None:
    generator = torch.Generator().manual_seed(0)
    for dtype in FLOAT_DTYPES:
        base = torch.randn(500, generator=generator).to(dtype)
        tuned = [
            torch.where(
                torch.rand(500, generator=generator) < 0.1, torch.randn(500, generator=generator).to(dtype), base
            )
            for _ in range(8)
        ]
        deltas: list[SparseDelta] = [export({"w": base}, {"w": weights}) for weights in tuned]
        module = module_of(base)
        chooser = random.Random(0)
        for _ in range(1000):
            choice = chooser.randrange(len(deltas))
            with deltas[choice].apply(module):
                assert bit_equal(module.w.data, tuned[choice])
        assert bit_equal(module.w.data, base)

"""The ramp's two ends, its middle, and what is no iteration."""

import math

import pytest

from cmkd import sigmoid_ramp
from tests.messages import names


def test_starts_at_zero_and_rises_to_its_end():
    assert sigmoid_ramp(0, 10_000) == 0
    assert sigmoid_ramp(10_000, 10_000) == pytest.approx(2 / (1 + math.exp(-1)) - 1)
    values = [sigmoid_ramp(t, 100) for t in range(101)]
    assert values == sorted(set(values))


def test_after_the_end_it_stays_level_unless_told_otherwise():
    end = sigmoid_ramp(100, 100)
    assert sigmoid_ramp(101, 100) == sigmoid_ramp(10**9, 100) == end
    assert sigmoid_ramp(200, 100, clip=False) == pytest.approx(2 / (1 + math.exp(-2)) - 1)
    assert sigmoid_ramp(10**9, 1, clip=False) == 1


def test_no_iteration():
    with pytest.raises(ValueError, match=names("iteration", -1)):
        sigmoid_ramp(-1, 10)
    with pytest.raises(ValueError, match=names("max_iterations", 0)):
        sigmoid_ramp(0, 0)

"""A layer of any geometry gives each sample of a mixed batch what its own tuned layer would."""

import copy

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rst import export, mixed_forward


def check(layer: nn.Module, inputs: Tensor, names: list[str], density: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    layer = layer.double().eval()
    tuned = {"__base__": layer}
    for name in {*names} - {"__base__"}:
        tuned[name] = copy.deepcopy(layer)
        with torch.no_grad():
            for parameter in tuned[name].parameters():
                moved = torch.rand(parameter.shape, generator=generator) < density
                parameter += moved * torch.randn(parameter.shape, generator=generator)
    deltas = {
        name: export(layer.state_dict(), other.state_dict()) for name, other in tuned.items() if name != "__base__"
    }
    found = mixed_forward(layer, deltas, names, (inputs,), {})
    with torch.no_grad():
        wanted = torch.cat([tuned[name](inputs[i : i + 1]) for i, name in enumerate(names)])
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


names = st.lists(st.sampled_from(["__base__", "a", "b", "c"]), min_size=1, max_size=5)
densities = st.sampled_from([0.0, 0.05, 0.5, 1.0])
sizes = st.integers(1, 5)


@settings(max_examples=60)
@given(names, densities, st.lists(sizes, max_size=2), sizes, sizes, st.booleans(), st.integers(0, 99))
def test_linear(
    names: list[str], density: float, between: list[int], wide: int, out: int, bias: bool, seed: int
) -> None:
    inputs = torch.randn(len(names), *between, wide, dtype=torch.float64)
    check(nn.Linear(wide, out, bias=bias), inputs, names, density, seed)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("dimensions", [1, 2, 3])
@settings(max_examples=40)
@given(st.data(), names, densities, st.booleans(), st.integers(0, 99))
def test_convolution(
    dimensions: int, data: st.DataObject, names: list[str], density: float, bias: bool, seed: int
) -> None:
    def each(strategy: st.SearchStrategy[int]) -> tuple[int, ...]:
        return tuple(data.draw(strategy) for _ in range(dimensions))

    groups = data.draw(st.integers(1, 3))
    kernel, dilation = each(st.integers(1, 3)), each(st.integers(1, 2))
    stride = each(st.integers(1, 3))
    explicit = each(st.integers(0, 2))
    padding = data.draw(st.sampled_from(["same", "valid", explicit])) if {*stride} == {1} else explicit
    mode = data.draw(st.sampled_from(["zeros", "circular"]))
    size = each(st.integers(3, 6))
    before = explicit if padding == explicit else (0,) * dimensions
    assume(all(s + 2 * p > d * (k - 1) for s, p, d, k in zip(size, before, dilation, kernel, strict=True)))
    layer = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dimensions](
        groups * data.draw(st.integers(1, 2)),
        groups * data.draw(st.integers(1, 2)),
        kernel,
        stride,
        padding,
        dilation,
        groups,
        bias,
        mode,
    )
    check(layer, torch.randn(len(names), layer.in_channels, *size, dtype=torch.float64), names, density, seed)

"""What kernels leave on the device, beside what the same function leaves on the CPU: bit for bit."""

import pytest
import torch
from torch import Tensor, nn

from rst import RSTModel, SparseDelta, WrongBaseError, export
from rst.numerics.difference import changed_positions, count_changed
from rst.numerics.exactness import bit_equal
from rst.sync import fingerprint_state
from rst.training.boundary_on_device import keep_about_
from rst.training.projection import choose_projection
from rst.training.projection_eager import Pair, project_eager
from tests.rst.training.test_projection import any_weights
from tests.strategies import FLOAT_DTYPES

pytestmark = pytest.mark.gpu
SIZES = (3000, 517, 64, 1, 0)


def weights(dtype: torch.dtype) -> list[Pair]:
    """wt and w0: any bits, NaN among them, aligned and not, many small ones."""
    pairs = [any_weights(dtype, size)[::-1] for size in SIZES]
    pairs += [(one.repeat(4)[1 : 1 + len(one)], two.repeat(4)[3 : 3 + len(two)]) for one, two in pairs]
    pairs[0][0][5] = float("nan")
    return [*pairs, *((torch.ones(1, dtype=dtype), torch.zeros(1, dtype=dtype)) for _ in range(40))]


def on(device: torch.device, pairs: list[Pair]) -> list[Pair]:
    """Copies there, as far from multiples of 16 bytes as they are here."""
    moved = []
    for pair in pairs:
        whole = [torch.empty(one.storage_offset() + len(one), dtype=one.dtype, device=device) for one in pair]
        moved.append(tuple(w[one.storage_offset() :].copy_(one) for w, one in zip(whole, pair, strict=True)))
    return moved  # type: ignore[return-value]


def equal(found: list[Pair], wanted: list[Pair]) -> bool:
    return all(
        bit_equal(one.cpu(), two.cpu())
        for a, b in zip(found, wanted, strict=True)
        for one, two in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("threshold", [0.0, 1e-6, 0.1, 1e30])
def test_projection(device: torch.device, threshold: float) -> None:
    pairs = [pair for dtype in FLOAT_DTYPES for pair in weights(dtype)]
    found = on(device, pairs)
    count = choose_projection([weight for weight, _ in found])(found, threshold)
    project_eager(pairs, threshold)
    assert equal(found, pairs)
    assert count is not None
    assert count() == sum(count_changed((origin, weight) for weight, origin in pairs))


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_a_share(device: torch.device, dtype: torch.dtype) -> None:
    pairs = weights(dtype)
    found = on(device, pairs)
    project = choose_projection([weight for weight, _ in found])
    kept = [({str(n): pair[side] for n, pair in enumerate(some)}) for some in (pairs, found) for side in (0, 1)]
    wanted = keep_about_(kept[0], kept[1], 0.2, project_eager, step=3)
    boundary = keep_about_(kept[2], kept[3], 0.2, project, step=3)
    assert wanted is not None
    assert boundary is not None
    assert float(boundary) == float(wanted)
    assert equal(found, pairs)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_changed_positions_and_fingerprints(device: torch.device, dtype: torch.dtype) -> None:
    pairs = weights(dtype)
    found = on(device, pairs)
    assert count_changed(found) == count_changed(pairs)
    for (tuned, base), (one, two) in zip(pairs[:8], found[:8], strict=True):
        assert changed_positions(one, two)[0].tolist() == changed_positions(tuned, base)[0].tolist()
    states = [{str(number): pair[0] for number, pair in enumerate(some)} for some in (pairs, found)]
    assert fingerprint_state(states[0]) == fingerprint_state(states[1])


def network(device: torch.device) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5).bfloat16()).to(device)


def delta(seed: int) -> SparseDelta:
    base = network(torch.device("cpu")).state_dict()
    generator = torch.Generator().manual_seed(seed)
    tuned = {name: tensor.clone() for name, tensor in base.items()}
    for tensor in tuned.values():
        if tensor.is_floating_point():
            tensor[torch.rand(tensor.shape, generator=generator) < 0.3] += 0.25
    return export(base, tuned)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.cpu().clone() for name, tensor in module.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return all(bit_equal(tensor, right[name]) for name, tensor in left.items())


def test_swaps(device: torch.device) -> None:
    base = state(network(device))
    deltas = {f"task{seed}": delta(seed) for seed in range(3)}
    model = RSTModel(network(device))
    for name, one in deltas.items():
        model.add_adapter(name, one)
    for turn in range(9):
        model.set_adapter(f"task{turn % 3}")
        tuned = network(torch.device("cpu"))
        deltas[f"task{turn % 3}"].apply(tuned)
        assert same(state(model.base_model), state(tuned))
    with model.disable_adapter():
        assert same(state(model.base_model), base)


def test_a_swap_on_another_base_changes_nothing(device: torch.device) -> None:
    module = network(device)
    prepared = delta(0).prepare(module)
    with torch.no_grad():
        module[3].weight += 1
    before = state(module)
    with pytest.raises(WrongBaseError) as caught:
        prepared.apply()
    assert caught.value.parameter == "3.weight"
    assert same(state(module), before)

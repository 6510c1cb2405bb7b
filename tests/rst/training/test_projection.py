"""Both backends of Eq. 17 give the bits of the plain formula, over any weights, memory layout and thread count."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rst.numerics.exactness import bit_equal
from rst.numerics.rounding import comparison_bound
from rst.training import projection, projection_compiled
from rst.training.projection import Project, choose_projection
from rst.training.projection_compiled import has_compiler, project_compiled
from rst.training.projection_eager import project_eager
from tests.strategies import FLOAT_DTYPES

RAW = {8: torch.int64, 4: torch.int32, 2: torch.int16}
THRESHOLDS = [0.0, 1e-6, 3e-4, 0.1, 1.0, 1e30, 5e-324]
needs_compiler = pytest.mark.skipif(not has_compiler(torch.device("cpu")), reason="no C++ compiler is at hand")
# torch.compile's own, on some of its versions
pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore::UserWarning")


def any_weights(dtype: torch.dtype, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random bit patterns, neighbours, subnormals, infinities, equal pairs; no NaN."""
    generator = torch.Generator().manual_seed(size)
    raw = RAW[dtype.itemsize]
    info = torch.iinfo(raw)

    def patterns(low: int, high: int) -> torch.Tensor:
        return torch.randint(low, high, (size,), dtype=raw, generator=generator).view(dtype)

    def where(share: float, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return torch.where(torch.rand(size, generator=generator) < share, left, right)

    base = where(0.2, patterns(0, 50), patterns(info.min, info.max))
    tuned = where(0.2, patterns(0, 50), patterns(info.min, info.max))
    tuned = where(0.4, torch.nextafter(base, tuned), where(0.2, base, tuned))
    tuned = where(0.2, base + torch.randn(size, generator=generator).to(dtype) * 1e-3, tuned)
    return tuple(torch.where(tensor.isnan(), torch.ones_like(tensor), tensor) for tensor in (base, tuned))  # type: ignore[return-value]


@pytest.mark.parametrize("project", [project_eager, pytest.param(project_compiled, marks=needs_compiler)])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_the_bits_are_those_of_the_formula(dtype: torch.dtype, project: Project) -> None:
    pairs = [any_weights(dtype, size) for size in (100_003, 20_000, 100, 1, 0)]
    for threshold in THRESHOLDS:
        projected = [(tuned.clone(), base.clone()) for base, tuned in pairs]
        project(iter(projected), threshold)
        for (found, origin), (base, tuned) in zip(projected, pairs, strict=True):
            assert bit_equal(found, torch.where((tuned - base).abs() > threshold, tuned, base)), threshold
            assert bit_equal(origin, base)


@pytest.mark.parametrize("project", [project_eager, pytest.param(project_compiled, marks=needs_compiler)])
def test_weights_of_all_dtypes_at_once(project: Project) -> None:
    pairs = [any_weights(dtype, 20_000) for dtype in FLOAT_DTYPES]
    projected = [(tuned.clone(), base) for base, tuned in pairs]
    project(projected, 1e-6)
    for (found, _), (base, tuned) in zip(projected, pairs, strict=True):
        assert bit_equal(found, torch.where((tuned - base).abs() > 1e-6, tuned, base))


@needs_compiler
def test_compiled_projection_of_memory_layouts() -> None:
    base, tuned = (tensor.view(10, 20, 5, 20) for tensor in any_weights(torch.float32, 20_000))
    wanted = torch.where((tuned - base).abs() > 0.1, tuned, base)
    last = torch.channels_last
    for weight, origin in [
        (tuned.to(memory_format=last), base.to(memory_format=last)),
        (tuned.to(memory_format=last), base),
    ]:
        project_compiled([(weight, origin)], 0.1)
        assert torch.equal(weight, wanted)


def test_several_threads_give_the_same_bits() -> None:
    base, tuned = any_weights(torch.float32, 3_000_001)
    threads = torch.get_num_threads()
    single, several = tuned.clone(), tuned.clone()
    torch.set_num_threads(1)
    project_eager([(single, base)], 1e-3)
    torch.set_num_threads(4)
    project_eager([(several, base)], 1e-3)
    torch.set_num_threads(threads)
    assert bit_equal(single, several)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("threshold", [0.0, 1e-6, 1e-3, 0.1, 60000.0, 1e30])
def test_the_bound_separates_what_rounds_up_from_what_rounds_down(dtype: torch.dtype, threshold: float) -> None:
    bound = torch.tensor(comparison_bound(threshold, dtype))
    limit = torch.tensor(threshold, dtype=dtype)
    assert bound.to(dtype) <= limit
    above = torch.nextafter(bound, torch.tensor(float("inf")))
    assert above.to(dtype) > limit or bound.isinf()


def test_a_compiler_that_fails_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("Python.h: no such file\nand much more")

    monkeypatch.setattr(projection_compiled, "has_compiler", lambda device: True)
    monkeypatch.setattr(projection_compiled, "_kernel", lambda: broken)
    projection_compiled.compiles.cache_clear()
    many = [torch.zeros(1).expand(1 << 24)]
    with pytest.warns(UserWarning, match=r"not compiled on cpu \(RuntimeError: Python.h: no such file\)$"):
        assert choose_projection(many) is project_eager
    assert choose_projection(many) is project_eager
    projection_compiled.compiles.cache_clear()


def test_many_weights_on_one_device_are_worth_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[torch.device, torch.dtype]] = []
    monkeypatch.setattr(projection, "compiles", lambda *kind: not asked.append(kind))
    half = torch.zeros(1, dtype=torch.float16).expand(1 << 23)
    assert choose_projection([]) is project_eager
    assert choose_projection([half, half[1:]]) is project_eager
    assert choose_projection([half, half.to("meta")]) is project_eager
    assert not asked  # which may take seconds
    assert choose_projection([half, half]) is project_compiled
    assert asked == [(torch.device("cpu"), torch.float16)]


class OperationNames(TorchDispatchMode):
    """Notes the names of torch's operations."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(func.overloadpacket.__name__)
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 3, 1, 2), (3, 2, 1, 0)])
def test_memory_without_gaps_is_projected_without_temporaries_of_its_size(order: tuple[int, ...]) -> None:
    base = torch.zeros(2, 3, 4, 5).permute(order)
    tuned = torch.ones(2, 3, 4, 5).permute(order)
    with OperationNames() as operations:
        project_eager([(tuned, base)], 1.0)
    assert not tuned.any()
    assert not operations.seen & {"sub", "where"}


def test_a_change_as_large_as_the_threshold_goes_back_where_memory_has_gaps_too() -> None:
    tuned = torch.tensor([[0.5, 9.0], [0.75, 9.0]])[:, 0]
    project_eager([(tuned, torch.zeros(2))], 0.5)
    assert tuned.tolist() == [0.0, 0.75]


def test_other_devices_have_an_operation_of_their_own() -> None:
    weights = torch.zeros(3, device="meta")
    with OperationNames() as operations:
        project_eager([(weights, weights)], 0.5)
    assert operations.seen >= {"sub", "where"}

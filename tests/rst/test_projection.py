"""Both backends of Eq. 17 give the bits of the plain formula, over any weights, memory layout and thread count."""

import pytest
import torch

from rst import projection_compiled
from rst.comparison_bound import comparison_bound
from rst.exactness import bit_equal
from rst.projection import Backend, choose_backend, project_
from rst.projection_compiled import has_compiler
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


@pytest.mark.parametrize("backend", ["eager", pytest.param("compiled", marks=needs_compiler)])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_the_bits_are_those_of_the_formula(dtype: torch.dtype, backend: Backend) -> None:
    pairs = [any_weights(dtype, size) for size in (100_003, 20_000, 100, 1, 0)]
    for threshold in THRESHOLDS:
        projected = [(tuned.clone(), base) for base, tuned in pairs]
        project_(iter(projected), threshold, backend)
        changes = [(tuned - base).abs() for base, tuned in pairs]
        for (found, _), (base, tuned), change in zip(projected, pairs, changes, strict=True):
            assert bit_equal(found, torch.where(change > threshold, tuned, base)), threshold


@needs_compiler
def test_compiled_projection_of_memory_layouts() -> None:
    base, tuned = (tensor.view(10, 20, 5, 20) for tensor in any_weights(torch.float32, 20_000))
    wanted = torch.where((tuned - base).abs() > 0.1, tuned, base)
    last = torch.channels_last
    for weight, origin in [
        (tuned.to(memory_format=last), base.to(memory_format=last)),
        (tuned.to(memory_format=last), base),
    ]:
        project_([(weight, origin)], 0.1, "compiled")
        assert torch.equal(weight, wanted)


def test_several_threads_give_the_same_bits() -> None:
    base, tuned = any_weights(torch.float32, 3_000_001)
    threads = torch.get_num_threads()
    single, several = tuned.clone(), tuned.clone()
    torch.set_num_threads(1)
    project_([(single, base)], 1e-3, "eager")
    torch.set_num_threads(4)
    project_([(several, base)], 1e-3, "eager")
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
        assert choose_backend(many) == "eager"
    assert choose_backend(many) == "eager"
    projection_compiled.compiles.cache_clear()


def test_few_weights_are_not_worth_a_compiler() -> None:
    assert choose_backend([torch.zeros(10)]) == "eager"
    assert choose_backend([]) == "eager"

"""A swap by a kernel: one launch for each width of elements, all or nothing, and everything that holds of any swap."""

import inspect
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import rst.live
from rst import PreparedDelta, SparseDelta, WrongBaseError, export
from rst.numerics.exactness import bit_equal
from tests.compiled import compile_kernel
from tests.interpreted import interpreted_kernels
from tests.rst.live import test_apply
from tests.strategies import pairs

pytest.importorskip("triton", reason="Triton is not installed")
SWAPS = {
    name: test
    for name, test in vars(test_apply).items()
    if name.startswith("test_") and "many" not in name and not inspect.signature(test).parameters
}


@pytest.mark.parametrize("name", SWAPS)
def test_what_holds_of_any_swap(name: str) -> None:
    with interpreted_kernels():
        SWAPS[name]()


@settings(max_examples=15)
@given(st.lists(pairs(12), min_size=1, max_size=4))
def test_a_swap_there_and_back_leaves_the_bits(drawn: list[tuple[Tensor, Tensor]]) -> None:
    base, tuned = ({str(number): pair[side] for number, pair in enumerate(drawn)} for side in (0, 1))
    delta = export(base, tuned)
    module = nn.ParameterDict({name: nn.Parameter(tensor.clone()) for name, tensor in base.items()})
    with interpreted_kernels() as launches:
        with delta.apply(module):
            assert all(bit_equal(module[name].data, tensor) for name, tensor in tuned.items())
        assert all(bit_equal(module[name].data, tensor) for name, tensor in base.items())
    assert set(launches) <= {"exchange"}
    assert len(launches) == 2 * len({change.dtype.itemsize for change in delta.parameters.values()})


def half_and_head() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 4).bfloat16(), nn.Linear(4, 2))


def changed() -> tuple[nn.Sequential, SparseDelta]:
    tuned = half_and_head()
    with torch.no_grad():
        for tensor in tuned.state_dict().values():
            if tensor.ndim:
                tensor[..., ::2] += 1
    return tuned, export(half_and_head(), tuned, modules_to_save=["3"])


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return all(bit_equal(tensor, right[name]) for name, tensor in left.items())


def test_words_of_each_width_are_exchanged_in_one_launch() -> None:
    live, (tuned, delta) = half_and_head(), changed()
    base = state(live)
    with interpreted_kernels() as launches:
        prepared = delta.prepare(live)
        for _ in range(3):
            prepared.apply()
            assert same(state(live), state(tuned))
            prepared.remove()
            assert same(state(live), base)
    assert launches == ["exchange"] * 2 * 3 * 2


@pytest.mark.parametrize("name", ["0.weight", "2.bias", "3.weight"])
def test_other_values_than_the_base_has_are_put_back(name: str) -> None:
    live, (_, delta) = half_and_head(), changed()
    with interpreted_kernels() as launches:
        prepared, base = delta.prepare(live), state(live)
        with torch.no_grad():
            live.state_dict()[name].view(-1)[0] += 1
        before = state(live)
        with pytest.raises(WrongBaseError) as caught:
            prepared.apply()
        assert same(state(live), before)
        assert caught.value.parameter == name
        assert not prepared.applied
        assert launches.count("exchange") == len(launches) == 4  # there, and back
        with torch.no_grad():
            live.load_state_dict(base)
        prepared.apply()
        assert prepared.applied


def interrupted(work: Callable[[], object], point: int) -> bool:
    """Ctrl-C before line number `point` of what changes weights and bookkeeping; whether it came to that."""
    lines, happened = count(), False
    folder = Path(rst.live.__file__).parent

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal happened
        file = Path(frame.f_code.co_filename)
        if frame.f_code.co_name == "exchange":  # the kernel, which the interpreter runs: no GPU stops in its midst
            return None
        if file.parent != folder or file.name not in ("apply.py", "exchange_triton.py", "undo.py"):
            return None
        if event == "line" and next(lines) == point:
            happened = True
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return happened


@pytest.mark.parametrize("verb", ["apply", "remove"])
def test_ctrl_c_between_any_two_lines_leaves_all_or_nothing(verb: str) -> None:
    live = nn.Linear(3, 2)
    base = state(live)
    tuned = {name: tensor + 1 for name, tensor in base.items()}
    happened, point = True, 0
    with interpreted_kernels():
        prepared: PreparedDelta = export(base, tuned).prepare(live)
        while happened:
            if (verb == "remove") != prepared.applied:
                (prepared.apply if verb == "remove" else prepared.remove)()
            happened = interrupted(getattr(prepared, verb), point)
            point += 1
            assert same(state(live), tuned if prepared.applied else base), point
    assert point > 20
    assert prepared.applied == (verb == "apply")


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_the_kernel_needs_no_memory_of_its_own(capability: int) -> None:
    from rst.live import exchange_triton
    from rst.numerics.blocks_triton import WORD

    types = {
        "rows": "*i64",
        "row_of_block": "*i32",
        "kept": "*i32",
        "answer": "*i32",
        "count": "i32",
        "which": "i32",
    }
    constants = {"WORD": WORD[4], "BLOCK": 1024, "BACK": False}
    built = compile_kernel(exchange_triton.exchange, types, constants, capability)
    assert built.local_bytes == 0
    assert built.registers <= 96

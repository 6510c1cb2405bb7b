"""A swap stopped between any two lines leaves the weights and the bookkeeping as they were, or is done."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rst.live
from rst import RSTConfig, RSTModel, SparseDelta, export, get_rst_model
from rst.live.patch import Patch
from rst.numerics.exactness import bit_equal

pytestmark = pytest.mark.slow

State = dict[str, Tensor]
# where weights and bookkeeping are changed; to prepare a delta changes neither
LIVE = Path(rst.live.__file__).parent
FILES = {
    str(LIVE / name)
    for name in ("apply.py", "adapters.py", "adapter_bank.py", "undo.py", "swap_version.py", "patch.py")
}
PREPARING = (
    "prepare",
    "prepare_at",
    "places_of",
    "find",
    "find_place",
    "_find",
    "_distinct",
    "_patch_batch",
    "_patch_whole",
)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


@cache
def delta(amount: float) -> SparseDelta:
    tuned = network()
    with torch.no_grad():
        tuned[0].weight[::2] += amount
        tuned[2].bias += amount
        tuned[1].running_mean += amount
    return export(network(), tuned, modules_to_save=["2"])


def two_adapters(folder: Path) -> RSTModel:
    model = RSTModel(network())
    model.add_adapter("a", delta(0.5))
    model.add_adapter("b", delta(0.25))
    return model


def in_training(folder: Path) -> RSTModel:
    model = get_rst_model(network(), RSTConfig(threshold=1e-6, modules_to_save=["2"]), "a")
    with torch.no_grad():
        model.base_model[0].weight[::2] += 0.5
        model.base_model[2].bias += 1
    model.trainer.select()
    model.add_adapter("b", delta(0.25))
    return model


def saved(folder: Path) -> Path:
    if not (folder / "c").exists():
        other = RSTModel(network())
        other.add_adapter("default", delta(2.0))
        other.save_pretrained(folder / "c")
    return folder / "c"


STRIDES = {"hotswap_adapter": 13, "load_adapter": 13}  # of these, which are long, not every line
VERBS: dict[str, Callable[[RSTModel, Path], object]] = {
    "set_adapter": lambda model, _: model.set_adapter("b"),
    "merge_adapter": lambda model, _: model.merge_adapter(["b"]),
    "disable_adapters": lambda model, _: model.disable_adapters(),
    "hotswap_adapter": lambda model, folder: model.hotswap_adapter(saved(folder), "a"),
    "load_adapter": lambda model, folder: model.load_adapter(saved(folder), "c"),
}


def state(model: RSTModel) -> State:
    return {name: tensor.detach().clone() for name, tensor in model.base_model.state_dict().items()}


def same(left: State, right: State) -> bool:
    return all(bit_equal(left[name], right[name]) for name in left)


def books(model: RSTModel) -> tuple[Any, ...]:
    trains = tuple(parameter.requires_grad for parameter in model.base_model.parameters())
    return model.adapter_names, model.active_adapter, model._bank.enabled, trains


@contextmanager
def interrupted_at(point: int) -> Iterator[list[bool]]:
    """Ctrl-C before line number `point` of those functions; the list says whether it came to that."""
    lines, happened = count(), [False]

    def trace(frame: FrameType, event: str, _: object) -> Any:
        code = frame.f_code
        if code.co_filename not in FILES or code.co_name in PREPARING:
            return None
        if event == "line" and next(lines) == point:
            happened[0] = True
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield happened
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("make", [two_adapters, in_training])
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_stopped_between_two_lines(tmp_path: Path, verb: str, make: Callable[[Path], RSTModel]) -> None:
    saved(tmp_path)
    done = make(tmp_path)
    VERBS[verb](done, tmp_path)
    for point in count(step=STRIDES.get(verb, 3)):
        model = make(tmp_path)
        before = state(model), books(model)
        with interrupted_at(point) as happened:
            try:
                VERBS[verb](model, tmp_path)
            except KeyboardInterrupt:
                assert happened[0]
        undone = same(state(model), before[0]) and books(model) == before[1]
        assert undone or (same(state(model), state(done)) and books(model) == books(done)), point
        VERBS[verb](model, tmp_path) if undone else None
        assert same(state(model), state(done))
        model.disable_adapters()
        assert same(state(model), state(RSTModel(network())))
        if not happened[0]:
            break
    assert point > 10


@pytest.mark.parametrize("failing", range(5))
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_scatter_that_fails_is_undone(monkeypatch: Any, failing: int, error: type[BaseException]) -> None:
    model, write, calls = network(), Patch.write, count()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prepared = delta(0.5).prepare(model)

    def fail(patch: Patch, elements: Any) -> None:
        write(patch, elements)
        if next(calls) == failing:
            raise error

    monkeypatch.setattr(Patch, "write", fail)
    for expected, verb in ((False, prepared.apply), (True, prepared.remove)):
        calls = count()
        if failing >= len(prepared.patches):
            verb()
            continue
        with pytest.raises(error):
            verb()
        assert prepared.applied is expected
        calls = count(100)
        assert same(dict(model.state_dict()), before) is not expected
        verb()
    assert same(dict(model.state_dict()), before)
    assert len(prepared.patches) > 3


@pytest.mark.parametrize("make", [two_adapters, in_training])
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_whose_scatter_fails(
    monkeypatch: Any, tmp_path: Path, verb: str, make: Callable[[Path], RSTModel]
) -> None:
    saved(tmp_path)
    write = Patch.write
    for failing in count():
        model, calls = make(tmp_path), count()
        before = state(model), books(model)

        def fail(patch: Patch, elements: Any, calls: Iterator[int] = calls, failing: int = failing) -> None:
            write(patch, elements)
            if next(calls) == failing:
                raise MemoryError

        monkeypatch.setattr(Patch, "write", fail)
        try:
            VERBS[verb](model, tmp_path)
        except MemoryError:
            assert same(state(model), before[0])
            assert books(model) == before[1]
        else:
            break
        finally:
            monkeypatch.setattr(Patch, "write", write)
    assert failing > 0 or make is in_training or verb == "load_adapter"  # which scatter nothing


def test_a_first_adapter_whose_scatter_fails_is_not_there(monkeypatch: Any) -> None:
    model, write = RSTModel(network()), Patch.write

    def fail(patch: Patch, elements: Any) -> None:
        monkeypatch.setattr(Patch, "write", write)
        raise MemoryError

    before = state(model), books(model)
    monkeypatch.setattr(Patch, "write", fail)
    with pytest.raises(MemoryError):
        model.add_adapter("a", delta(0.5))
    assert same(state(model), before[0])
    assert books(model) == before[1]
    model.add_adapter("a", delta(0.5))
    assert not same(state(model), before[0])

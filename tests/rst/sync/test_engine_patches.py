"""A follower hands each step on as patches: an engine that takes them has the trainer's bits."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rst import NotCarriedError
from rst.interop.vllm import EnginePatches, SparsePatch
from rst.numerics.exactness import bit_equal
from rst.sync import Follower, Publisher
from tests.refusal import refused

State = dict[str, Tensor]


class Engine:
    """What takes patches: the weights of a model, each element written where a patch says."""

    def __init__(self, weights: State) -> None:
        self.weights = {name: weight.clone() for name, weight in weights.items()}
        self.taken: list[EnginePatches] = []

    def take(self, step: EnginePatches) -> None:
        self.taken.append(step)
        self.write(step.patches)

    def write(self, patches: list[SparsePatch]) -> None:
        for patch in patches:
            weight = self.weights[patch.name]
            assert (patch.full_shape, patch.values.dtype) == (tuple(weight.shape), weight.dtype)
            assert patch.indices.dtype == torch.int32
            weight.view(-1)[patch.indices.long()] = patch.values

    def has(self, weights: State) -> bool:
        return all(bit_equal(self.weights[name], weight) for name, weight in weights.items())


def weights() -> State:
    torch.manual_seed(0)
    return {"a": torch.randn(6, 5).bfloat16(), "b": torch.randn(7), "n": torch.arange(3)}


def train(live: State, step: int) -> None:
    live["a"][step % 6] *= 1.5
    live["b"][step % 7] = -0.0


@pytest.mark.parametrize("op", ["step", "replace", "add"])
def test_an_engine_has_each_step_and_can_go_back(tmp_path: Path, op: str) -> None:
    live, engine = weights(), Engine(weights())
    publisher, follower = Publisher(live, tmp_path, op=op), Follower(weights(), tmp_path)
    for step in range(4):
        train(live, step)
        publisher.publish()
        if step % 2:
            follower.update(engine.take)
            assert engine.has(live)
    assert len(engine.taken) == 4
    for step in reversed(engine.taken):
        engine.write(step.reverting)
    assert engine.has(weights())


def test_of_an_anchor_only_what_differs_is_handed_on(tmp_path: Path) -> None:
    live, engine = weights(), Engine(weights())
    train(live, 0)
    Publisher(live, tmp_path)
    follower = Follower(weights(), tmp_path)
    assert follower.update(engine.take).anchor == 0
    assert engine.has(live)
    assert {patch.name: len(patch.indices) for patch in engine.taken[0].patches} == {"a": 5, "b": 1}


def test_what_the_engine_did_not_take_is_handed_on_again(tmp_path: Path) -> None:
    live, engine = weights(), Engine(weights())
    publisher, follower = Publisher(live, tmp_path), Follower(weights(), tmp_path)
    train(live, 0)
    publisher.publish()

    def fail(step: EnginePatches) -> None:
        engine.take(step)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        follower.update(fail)
    assert follower.step == 0
    assert all(bit_equal(follower.weights[name], weight) for name, weight in weights().items())
    assert follower.update(engine.take).step == 1
    assert engine.has(live)


def test_a_module_is_patched_under_its_names_in_any_memory_format(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(3, 4, 3)
    served = nn.Conv2d(3, 4, 3)
    served.load_state_dict(model.state_dict())
    engine = Engine(dict(served.state_dict()))
    publisher = Publisher(model, tmp_path)
    follower = Follower(served.to(memory_format=torch.channels_last), tmp_path)
    with torch.no_grad():
        model.weight[1, :, 2] += 1
    publisher.publish()
    follower.update(engine.take)
    assert engine.has(dict(model.state_dict()))


@pytest.mark.parametrize("by_anchor", [False, True])
def test_integers_have_no_patch_and_nothing_is_written(tmp_path: Path, by_anchor: bool) -> None:
    live = weights()
    if by_anchor:
        live["n"] += 1
    publisher, follower = Publisher(live, tmp_path), Follower(weights(), tmp_path)
    if not by_anchor:
        live["n"] += 1
        publisher.publish()
    taken: list[EnginePatches] = []
    with refused(NotCarriedError, parameter="n"):
        follower.update(taken.append)
    assert not taken
    assert bit_equal(follower.weights["n"], weights()["n"])
    assert follower.update().step == publisher.step

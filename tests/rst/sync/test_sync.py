"""A follower holds the trainer's bits at each step, whatever is in the weights and whatever befell the files."""

import copy
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rst import ConfigError, NonFiniteError, ParameterMismatchError
from rst.numerics.exactness import bit_equal
from rst.sync import (
    ChainConflictError,
    ChainDamageError,
    ChainGapError,
    ChainOrderError,
    ChainStateError,
    Follower,
    Publisher,
    fingerprint_state,
    link_of,
    read_pointer,
    verify,
)
from rst.sync.chain import anchor_name, delta_name
from rst.sync.live import live_weights
from tests.refusal import refused
from tests.strategies import vectors

State = dict[str, Tensor]


def network(dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> nn.Module:
    """A tied weight, a memory format of its own, an integer buffer, a scalar."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 8, bias=False), nn.Linear(8, 8))
    model[3].weight = model[2].weight
    model.register_parameter("scale", nn.Parameter(torch.tensor(2.0)))
    return model.to(dtype).to(memory_format=torch.channels_last)


@torch.no_grad()
def train(model: nn.Module, share: float = 0.1) -> None:
    """Move some weights by some units in the last place, as a step at a low rate does."""
    for weight in model.parameters():
        weight.mul_(1 + (torch.rand_like(weight) < share) * torch.randn_like(weight) * 0.02)
    for name, buffer in model.named_buffers():
        if name.endswith("num_batches_tracked"):
            buffer += 1


def same(left: nn.Module, right: nn.Module) -> bool:
    pairs = zip(left.state_dict().values(), right.state_dict().values(), strict=True)
    return all(bit_equal(a.contiguous(), b.contiguous()) for a, b in pairs)


def publish(model: nn.Module, publisher: Publisher, steps: int) -> None:
    for _ in range(steps):
        train(model)
        publisher.publish()


@st.composite
def chains(draw: st.DrawFn) -> list[State]:
    """States one after another: any bits but NaN, some weights moved, some states unchanged."""
    dtype = draw(st.sampled_from([torch.bfloat16, torch.float16, torch.float32]))
    sizes = {"a": draw(st.integers(0, 12)), "b.c": draw(st.integers(1, 12))}
    states = [{name: draw(vectors(dtype, size)) for name, size in sizes.items()}]
    for _ in range(draw(st.integers(1, 4))):
        other = {name: draw(vectors(dtype, size)) for name, size in sizes.items()}
        moved = {name: torch.tensor(draw(st.lists(st.booleans(), min_size=n, max_size=n))) for name, n in sizes.items()}
        states.append({n: torch.where(moved[n].bool(), other[n], states[-1][n]) for n in sizes})
    return states


@settings(max_examples=25)
@given(states=chains(), op=st.sampled_from(["step", "replace", "add"]), encoding=st.sampled_from(["packed", "coo"]))
def test_a_follower_has_the_trainers_bits_at_every_step(tmp_path_factory, states, op, encoding) -> None:
    store = tmp_path_factory.mktemp("chain")
    live = {name: tensor.clone() for name, tensor in states[0].items()}
    followed = {name: tensor.clone() for name, tensor in states[0].items()}
    publisher = Publisher(live, store, op=op, encoding=encoding, anchor_every=3)
    follower = Follower(followed, store)
    for number, state in enumerate(states[1:], start=1):
        for name, tensor in state.items():
            live[name].copy_(tensor)
        published = publisher.publish(step=number)
        assert follower.update().step == number
        assert all(bit_equal(followed[name], state[name]) for name in state)
        assert published.state == follower.state == fingerprint_state(state)
    assert verify(store).step == len(states) - 1


@pytest.mark.parametrize("storage", ["device", "cpu", "mmap"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_module_is_followed_in_place(tmp_path, dtype, storage) -> None:
    model, served = network(dtype), network(dtype)
    publisher = Publisher(model, tmp_path / "chain", base_storage=storage)
    follower = Follower(served, tmp_path / "chain")
    addresses = [weight.data_ptr() for weight in served.parameters()]
    for step in range(1, 4):
        publish(model, publisher, 1)
        assert follower.update().step == step
        assert same(model, served)
    assert addresses == [weight.data_ptr() for weight in served.parameters()]
    assert served[3].weight is served[2].weight
    follower.verify()


def test_two_hundred_steps_have_no_drift(tmp_path) -> None:
    model, served = network(), network()
    publisher, follower = Publisher(model, tmp_path, anchor_every=64), Follower(served, tmp_path)
    for _ in range(200):
        publish(model, publisher, 1)
        follower.update()
        assert same(model, served)
    follower.verify()
    assert follower.step == 200
    assert publisher.state == follower.state == fingerprint_state(follower.weights)


def test_a_stranger_starts_from_the_last_anchor_and_a_straggler_from_the_deltas(tmp_path) -> None:
    model, straggler = network(), network()
    publish(model, Publisher(model, tmp_path, anchor_every=4), 6)
    (tmp_path / delta_name(3)).rename(tmp_path / "aside")
    stranger = network(seed=1)
    assert Follower(stranger, tmp_path).update().step == 6  # needs neither step 3 nor the base
    assert same(stranger, model)
    (tmp_path / "aside").rename(tmp_path / delta_name(3))
    (tmp_path / anchor_name(4)).unlink()
    assert Follower(straggler, tmp_path).update().step == 6
    assert same(straggler, model)


def test_a_follower_needs_no_anchor_at_any_of_the_last_steps(tmp_path) -> None:
    model = network()
    publisher = Publisher(model, tmp_path, anchor_every=4)
    publish(model, publisher, 3)
    served = network(seed=1)
    served.load_state_dict(model.state_dict())
    publish(model, publisher, 3)
    for step in (0, 4):
        (tmp_path / anchor_name(step)).unlink()
    assert Follower(served, tmp_path).update().step == 6
    assert same(served, model)


def _lose(store: Path) -> None:
    (store / delta_name(2)).unlink()


def _flip(store: Path) -> None:
    data = bytearray((store / delta_name(2)).read_bytes())
    data[-1] ^= 1
    (store / delta_name(2)).write_bytes(data)


def _truncate(store: Path) -> None:
    (store / delta_name(2)).write_bytes((store / delta_name(2)).read_bytes()[:-7])


def _swap(store: Path) -> None:
    second, third = (store / delta_name(2)).read_bytes(), (store / delta_name(3)).read_bytes()
    (store / delta_name(2)).write_bytes(third)
    (store / delta_name(3)).write_bytes(second)


HARM = {_lose: ChainGapError, _flip: ChainDamageError, _truncate: ChainDamageError, _swap: ChainOrderError}


@pytest.mark.parametrize(("harm", "error"), HARM.items())
def test_gap_damage_and_wrong_order_leave_the_model_at_the_last_good_step(tmp_path, harm, error) -> None:
    model, served, first = network(), network(), network()
    publisher = Publisher(model, tmp_path)
    publish(model, publisher, 1)
    first.load_state_dict(model.state_dict())
    publish(model, publisher, 3)
    harm(tmp_path)
    follower = Follower(served, tmp_path)
    for _ in range(2):
        with pytest.raises(error):
            follower.update()
        assert follower.step == 1
        assert same(served, first)
        follower.verify()
    with pytest.raises(error):
        verify(tmp_path)


@pytest.mark.filterwarnings("ignore:.*continued from the anchor of step 4")
@pytest.mark.parametrize("harm", HARM)
def test_an_anchor_beyond_the_harm_is_the_way_on(tmp_path, harm) -> None:
    model, served = network(), network()
    publish(model, Publisher(model, tmp_path, anchor_every=4), 5)
    harm(tmp_path)
    follower = Follower(served, tmp_path)
    assert follower.update().step == 5
    assert same(served, model)
    follower.verify()


def test_a_damaged_anchor_gives_way_to_an_earlier_one(tmp_path) -> None:
    model, stranger = network(), network(seed=1)
    publish(model, Publisher(model, tmp_path, anchor_every=2), 5)
    anchor = tmp_path / anchor_name(4)
    anchor.write_bytes(anchor.read_bytes()[:-1])
    assert Follower(stranger, tmp_path).update().step == 5
    assert same(stranger, model)
    for step in (0, 2):
        (tmp_path / anchor_name(step)).unlink()
    untouched, as_it_was = network(seed=1), network(seed=1)
    with pytest.raises(ChainDamageError):
        Follower(untouched, tmp_path).update()
    assert same(untouched, as_it_was)


@pytest.mark.parametrize("place", ["touched", "elsewhere"])
def test_a_model_that_somebody_changed_is_noticed(tmp_path, place) -> None:
    model, served = network(), network()
    publisher, follower = Publisher(model, tmp_path), Follower(served, tmp_path)
    follower.update()
    before = served[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] += 1
        served[0].weight[(0, 0, 0, 0) if place == "touched" else (1, 0, 0, 0)] += 1
    changed = served[0].weight.detach().clone()
    publisher.publish()
    if place == "touched":
        with refused(ChainStateError, "step 1", file=tmp_path):
            follower.update()
        assert torch.equal(served[0].weight, changed)
        assert follower.step == 0
    else:
        follower.update()  # reads only what it changes
    with pytest.raises(ChainStateError):
        follower.verify()
    assert not torch.equal(before, changed)


def test_a_damaged_pointer_is_refused_by_both_sides(tmp_path) -> None:
    model = network()
    publisher = Publisher(model, tmp_path)
    pointer = tmp_path / "latest.json"
    text = pointer.read_text()
    for damaged in ("", text[:-9], text.replace('"step":0', '"step":1'), text.replace('_version":2', '_version":9')):
        pointer.write_text(damaged)
        for attempt in (lambda: Publisher(model, tmp_path), Follower(network(), tmp_path).update, publisher.publish):
            with refused(ChainDamageError, file="latest.json"):
                attempt()
    pointer.unlink()
    with refused(ChainGapError, file="latest.json"):
        Follower(network(), tmp_path).update()


def test_a_lost_pointer_does_not_start_a_chain_over_the_old_one(tmp_path) -> None:
    model = network()
    publish(model, Publisher(model, tmp_path), 1)
    (tmp_path / "latest.json").unlink()
    with refused(ChainDamageError, "steps up to 1", file=tmp_path):
        Publisher(model, tmp_path)
    assert (tmp_path / delta_name(1)).exists()


def test_a_new_publisher_goes_on_where_the_chain_ends(tmp_path) -> None:
    model, served = network(), network()
    publish(model, Publisher(model, tmp_path, anchor_every=2), 3)
    train(model)  # a step that was never published
    resumed = Publisher(model, tmp_path, anchor_every=2)
    assert resumed.step == 3
    assert resumed.publish().delta_bytes > 0
    publish(model, resumed, 1)
    assert Follower(served, tmp_path).update().step == 5
    assert same(served, model)
    assert verify(tmp_path).deltas == 5


@pytest.mark.parametrize("reason", ["unreadable", "another model"])
def test_a_chain_that_cannot_be_continued_goes_on_with_an_anchor(tmp_path, reason) -> None:
    model, served = network(), network()
    publish(model, Publisher(model, tmp_path), 2)
    follower = Follower(served, tmp_path)
    follower.update()
    if reason == "unreadable":
        shutil.copy(tmp_path / delta_name(1), tmp_path / delta_name(2))
        train(model)
    else:
        model = nn.Linear(3, 3)
    with pytest.warns(UserWarning, match=f"{tmp_path}.* anchor"):
        resumed = Publisher(model, tmp_path)
    assert resumed.publish().delta_bytes == 0
    if reason == "another model":
        with pytest.raises(ParameterMismatchError):
            follower.update()
        follower, served = Follower(served := nn.Linear(3, 3), tmp_path), served
    assert follower.update().step == 3
    assert same(served, model)
    publish(model, resumed, 1)
    assert follower.update().step == 4
    assert same(served, model)


def test_two_publishers_do_not_mix(tmp_path) -> None:
    model, other = network(), network()
    first, second = Publisher(model, tmp_path), Publisher(other, tmp_path)
    publish(model, first, 1)
    train(other)
    with refused(ChainConflictError, "step 0", file=tmp_path):
        second.publish()
    assert Follower(network(), tmp_path).update().step == 1


def test_the_publisher_refuses_before_it_publishes(tmp_path) -> None:
    model = network()
    publisher = Publisher(model, tmp_path)
    with refused(ChainOrderError, "step 2", "is 1", file=tmp_path):
        publisher.publish(step=2)
    with torch.no_grad():
        model.scale.fill_(float("nan"))
    with refused(NonFiniteError, "1 of 1", parameter="scale"):
        publisher.publish()
    with refused(NonFiniteError, "1 of 1", parameter="scale"):
        Publisher(model, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    model.scale = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    with refused(ParameterMismatchError, "(2,)", parameter="scale"):
        publisher.publish()
    assert read_pointer(publisher.store).step == 0


def test_a_model_of_other_shape_is_refused_unchanged(tmp_path) -> None:
    Publisher(network(), tmp_path)
    for stranger in (nn.Linear(2, 2), network(torch.float32)):
        before = {name: tensor.clone() for name, tensor in stranger.state_dict().items()}
        with pytest.raises(ParameterMismatchError):
            Follower(stranger, tmp_path).update()
        assert all(bit_equal(tensor, before[name]) for name, tensor in stranger.state_dict().items())


@pytest.mark.parametrize("storage", ["device", "mmap"])
def test_masters_in_float32_are_published_as_bfloat16(tmp_path, storage) -> None:
    model, served = network(torch.float32), network(torch.bfloat16, seed=1)
    publisher = Publisher(model, tmp_path, dtype=torch.bfloat16, base_storage=storage, anchor_every=2)
    follower = Follower(served, tmp_path)
    for step in (1, 2, 3):
        train(model, share=1.0)
        published = publisher.publish()
        assert follower.update().step == step
        assert same(served, copy.deepcopy(model).to(torch.bfloat16))
        assert published.state == fingerprint_state(live_weights(served)[0])
    assert all(weight.dtype == torch.float32 for weight in model.parameters())
    assert Publisher(model, tmp_path, dtype=torch.bfloat16).publish().changed == 0
    with refused(ConfigError, "torch.int8"):
        Publisher(model, tmp_path / "other", dtype=torch.int8)


def test_a_header_names_both_states(tmp_path) -> None:
    from rst import SparseDelta

    model = network()
    publisher = Publisher(model, tmp_path)
    before = publisher.state
    publish(model, publisher, 1)
    link = link_of(SparseDelta.load(tmp_path / delta_name(1)))
    assert (link.from_step, link.to_step, link.state_before, link.state_after) == (0, 1, before, publisher.state)
    with refused(ChainDamageError, "no chain", file="delta"):
        link_of(SparseDelta({}))


def test_a_store_of_fsspec(tmp_path) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    model, served, stranger = network(), network(), network(seed=1)
    publisher = Publisher(model, "memory://chains/one", anchor_every=2)
    publish(model, publisher, 3)
    assert (
        Follower(served, "memory://chains/one").update().step
        == Follower(stranger, "memory://chains/one").update().step
        == 3
    )
    assert same(served, model)
    assert same(stranger, model)
    assert verify("memory://chains/one").anchors == (0, 2)
    memory.rm_file(f"/chains/one/{delta_name(3)}")
    with refused(ChainGapError, file=f"memory:///chains/one/{delta_name(3)}"):
        Follower(network(), "memory://chains/one").update()

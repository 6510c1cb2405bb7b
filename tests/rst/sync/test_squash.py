"""Deltas of a chain squashed into one, versions on disk, and patches for engines: the same bits by other ways."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rst import NotCarriedError, ParameterMismatchError, SparseDelta, WrongBaseError, export, merge
from rst.interop import vllm
from rst.interop.vllm import DensePatch, SparsePatch, to_engine_patches
from rst.numerics.exactness import bit_equal, bits
from rst.sync import (
    ChainDamageError,
    ChainGapError,
    ChainOrderError,
    Follower,
    Publisher,
    link_of,
    read_version,
    squash,
    write_version,
)
from rst.sync.chain import delta_name
from tests.strategies import vectors

State = dict[str, Tensor]


def chain_of(states: list[State], store, op: str) -> list[SparseDelta]:
    live = {name: tensor.clone() for name, tensor in states[0].items()}
    publisher = Publisher(live, store, op=op)
    for state in states[1:]:
        for name, tensor in state.items():
            live[name].copy_(tensor)
        publisher.publish()
    return [SparseDelta.load(store / delta_name(step)) for step in range(1, len(states))]


def three_states(dtype: torch.dtype = torch.bfloat16) -> list[State]:
    """One weight moves twice, one there and back, one only at first, one only then."""
    zero = {"a": torch.tensor([1.0, 2.0, -0.0, 4.0, 5.0]).to(dtype), "b": torch.ones(3).to(dtype)}
    one = {"a": torch.tensor([1.5, 7.0, 0.0, 4.0, 5.0]).to(dtype), "b": torch.ones(3).to(dtype)}
    two = {"a": torch.tensor([-1.5, 2.0, 0.0, 3.0, 5.0]).to(dtype), "b": torch.tensor([1.0, 1.0, 2.0]).to(dtype)}
    return [zero, one, two]


@settings(max_examples=25)
@given(data=st.data(), op=st.sampled_from(["step", "replace"]))
def test_a_squashed_chain_gives_the_bits_of_its_last_state(tmp_path_factory, data, op) -> None:
    store = tmp_path_factory.mktemp("chain")
    dtype = data.draw(st.sampled_from([torch.bfloat16, torch.float16, torch.float32]))
    states = [{"a": data.draw(vectors(dtype, 9)), "b": data.draw(vectors(dtype, 3))} for _ in range(4)]
    for state in states[1:]:
        state["a"][: data.draw(st.integers(0, 9))] = states[0]["a"][0]
    first, second, third = chain_of(states, store, op)
    for squashed in (squash(squash(first, second), third), squash(first, squash(second, third))):
        merged = merge(states[0], squashed)
        assert all(bit_equal(merged[name], states[-1][name]) for name in merged)
        assert (link_of(squashed).after, link_of(squashed).step) == (0, 3)


@pytest.mark.parametrize("op", ["step", "replace"])
def test_a_follower_takes_a_squashed_delta(tmp_path, op) -> None:
    states = three_states()
    followed = {name: tensor.clone() for name, tensor in states[0].items()}
    Publisher(followed, tmp_path / "chain", op=op)
    follower = Follower(followed, tmp_path / "chain")
    follower.update()
    live = {name: tensor.clone() for name, tensor in states[0].items()}
    publisher = Publisher(live, tmp_path / "chain", op=op)
    for state in states[1:]:
        for name, tensor in state.items():
            live[name].copy_(tensor)
        publisher.publish()
    both = squash(*(SparseDelta.load(tmp_path / "chain" / delta_name(step)) for step in (1, 2)))
    both.save(tmp_path / "both.safetensors", encoding="packed")
    assert follower.apply(SparseDelta.load(tmp_path / "both.safetensors")) == 2
    assert all(bit_equal(followed[name], states[2][name]) for name in followed)
    follower.verify()
    with pytest.raises(ChainOrderError, match="from step 0 to 2"):
        follower.apply(both)


def test_what_cannot_be_composed_exactly_is_refused(tmp_path) -> None:
    steps = chain_of(three_states(), tmp_path / "steps", "step")
    residuals = chain_of(three_states(), tmp_path / "residuals", "add")
    with pytest.raises(ChainOrderError, match="applies to step 0"):
        squash(steps[1], steps[0])
    with pytest.raises(ChainOrderError, match="of chain"):
        squash(steps[0], residuals[1])
    with pytest.raises(ParameterMismatchError, match="residuals"):
        squash(*residuals)
    with pytest.raises(ChainDamageError, match="names no chain"):
        squash(steps[0], export(*three_states()[:2]))


def _scatter(weights: State, patches) -> State:
    """What an engine does."""
    patched = {name: tensor.clone() for name, tensor in weights.items()}
    for patch in patches:
        if isinstance(patch, DensePatch):
            patched[patch.name] = patch.values
        else:
            bits(patched[patch.name].view(-1))[patch.indices.long()] = bits(patch.values)
    return patched


@pytest.mark.parametrize("most", [vllm.MOST_INDEXED, 4])
@pytest.mark.parametrize("op", ["add", "replace", "step"])
def test_patches_make_the_tuned_weights_and_revert_them(monkeypatch, op, most) -> None:
    monkeypatch.setattr(vllm, "MOST_INDEXED", most)
    base, _, tuned = three_states()
    found = to_engine_patches(export(base, tuned, op=op), base)
    kinds = {patch.name: type(patch) for patch in found.patches}
    assert kinds == {"a": DensePatch if most == 4 else SparsePatch, "b": SparsePatch}
    there = _scatter(base, found.patches)
    back = _scatter(there, found.reverting)
    assert all(bit_equal(there[name], tuned[name]) and bit_equal(back[name], base[name]) for name in base)
    for patch in [*found.patches, *found.reverting]:
        assert patch.full_shape == tuple(base[patch.name].shape)
        assert patch.values.dtype == torch.bfloat16
        assert patch.values.is_contiguous()
        if isinstance(patch, SparsePatch):
            assert patch.indices.dtype == torch.int32
            assert patch.indices.is_contiguous()
            assert bool((patch.indices[1:] > patch.indices[:-1]).all())


def test_patches_keep_the_checkpoints_names_and_refuse_what_they_cannot_say() -> None:
    base, _, tuned = three_states()
    wrapped = {f"module.{name}": tensor for name, tensor in base.items()}
    found = to_engine_patches(export(base, tuned), wrapped)
    assert [patch.name for patch in found.patches] == ["module.a", "module.b"]
    with pytest.raises(WrongBaseError):
        to_engine_patches(export(base, tuned), tuned)
    with pytest.raises(NotCarriedError, match="int64"):
        to_engine_patches(export({"n": torch.tensor([1])}, {"n": torch.tensor([2])}), {"n": torch.tensor([1])})
    with pytest.raises(NotCarriedError, match="stored whole"):
        to_engine_patches(export(base, tuned, modules_to_save=["a"]), base)


def test_versions_are_checkpoints_with_a_base_and_a_checksum(tmp_path) -> None:
    from safetensors.torch import load_file

    base, _, tuned = three_states()
    full = write_version(tmp_path / "versions", 0, base)
    changed = write_version(tmp_path / "versions", 7, export(base, tuned, op="replace"), base_version=0)
    assert (full.kind, full.base_version, changed.kind, changed.base_version) == ("full", None, "delta", 0)
    engine = load_file(full.path)
    for name, tensor in engine.items():  # an engine needs safetensors and torch alone
        arrays = load_file(changed.path)
        tensor[arrays[f"{name}.indices"].long()] = arrays[f"{name}.values"]
        assert bit_equal(tensor, tuned[name])
    assert json.loads((changed.path.parent / "version.json").read_text())["base_version"] == 0
    assert read_version(tmp_path / "versions", 7) == changed
    data = bytearray(changed.path.read_bytes())
    data[-1] ^= 1
    changed.path.write_bytes(data)
    with pytest.raises(ChainDamageError, match="not the file"):
        read_version(tmp_path / "versions", 7)


def test_versions_that_would_not_hold_are_refused(tmp_path) -> None:
    base, _, tuned = three_states()
    write_version(tmp_path, 0, base)
    delta = export(base, tuned, op="replace")
    with pytest.raises(ChainOrderError, match="already"):
        write_version(tmp_path, 0, tuned)
    with pytest.raises(ChainOrderError, match="version 5, is not there"):
        write_version(tmp_path, 6, delta, base_version=5)
    with pytest.raises(ParameterMismatchError, match="absolute"):
        write_version(tmp_path, 1, export(base, tuned), base_version=0)
    with pytest.raises(ChainGapError, match="no such version"):
        read_version(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["0000000000"]

"""A delta as an engine's patches: the same bits by another way."""

import pytest
import torch
from torch import Tensor

from rst import ConfigError, NotCarriedError, WrongBaseError, export
from rst.interop import vllm
from rst.interop.vllm import to_engine_patches
from rst.numerics.exactness import bit_equal, bits
from tests.refusal import refused

State = dict[str, Tensor]


def three_states(dtype: torch.dtype = torch.bfloat16) -> list[State]:
    """One weight moves twice, one there and back, one only at first, one only then."""
    zero = {"a": torch.tensor([1.0, 2.0, -0.0, 4.0, 5.0]).to(dtype), "b": torch.ones(3).to(dtype)}
    one = {"a": torch.tensor([1.5, 7.0, 0.0, 4.0, 5.0]).to(dtype), "b": torch.ones(3).to(dtype)}
    two = {"a": torch.tensor([-1.5, 2.0, 0.0, 3.0, 5.0]).to(dtype), "b": torch.tensor([1.0, 1.0, 2.0]).to(dtype)}
    return [zero, one, two]


def _scatter(weights: State, patches) -> State:
    """What an engine does."""
    patched = {name: tensor.clone() for name, tensor in weights.items()}
    for patch in patches:
        bits(patched[patch.name].view(-1))[patch.indices.long()] = bits(patch.values)
    return patched


@pytest.mark.parametrize("op", ["add", "replace", "step"])
def test_patches_make_the_tuned_weights_and_revert_them(op) -> None:
    base, _, tuned = three_states()
    found = to_engine_patches(export(base, tuned, op=op), base)
    there = _scatter(base, found.patches)
    back = _scatter(there, found.reverting)
    assert all(bit_equal(there[name], tuned[name]) and bit_equal(back[name], base[name]) for name in base)
    for patch in [*found.patches, *found.reverting]:
        assert patch.full_shape == tuple(base[patch.name].shape)
        assert patch.values.dtype == torch.bfloat16
        assert patch.values.is_contiguous()
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


def test_what_a_patch_has_no_place_for_is_refused(monkeypatch) -> None:
    base, _, tuned = three_states()
    counts = {"n": torch.tensor([1])}
    for delta, of in (
        (export(counts, {"n": torch.tensor([2])}), counts),
        (export(base, tuned, modules_to_save=["a"]), base),
    ):
        with pytest.raises(NotCarriedError) as caught:
            to_engine_patches(delta, of)
        assert caught.value.parameter == min(of)
    monkeypatch.setattr(vllm, "MOST_INDEXED", 4)
    with pytest.raises(NotCarriedError) as caught:
        to_engine_patches(export(base, tuned), base)
    assert (caught.value.parameter, "5 elements" in caught.value.reason) == ("a", True)


def test_absolute_values_need_no_base() -> None:
    base, _, tuned = three_states()
    delta = export(base, tuned, op="replace")
    found = to_engine_patches(delta)
    there = _scatter(base, found.patches)
    assert all(bit_equal(there[name], tuned[name]) for name in base)
    assert found.reverting == []
    with refused(ConfigError, "step", parameter="a"):
        to_engine_patches(export(base, tuned, op="step"))

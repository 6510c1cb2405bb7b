"""Tied weights: stored once or twice, meant by either name, and refused where a delta would overwrite both."""

from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rst import (
    ConfigError,
    ParameterMismatchError,
    ResidualSparseTrainer,
    RSTConfig,
    RSTModel,
    RSTWarning,
    SparseDelta,
    export,
    merge,
)
from rst.mixed.batch import mixed_forward
from tests.messages import names
from tests.refusal import refused


class Tied(nn.Module):
    def __init__(self, *, tied: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(4, 4)
        self.emb = nn.Embedding(9, 4)
        self.head = nn.Linear(4, 9, bias=False)
        self.head.weight = self.emb.weight if tied else nn.Parameter(self.emb.weight.detach().clone())

    def forward(self, tokens: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(self.emb(tokens)))
        return scores


def stored(model: nn.Module, how: str) -> dict[str, Tensor]:
    """The state dict as a file has it: both names, one of them, or each a copy of its own."""
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    if how == "copies":
        return state
    if how == "shared":
        return state | {"head.weight": state["emb.weight"]}
    return {name: tensor for name, tensor in state.items() if name != ("head" if how == "first" else "emb") + ".weight"}


def tuned() -> Tied:
    model = Tied()
    with torch.no_grad():
        model.emb.weight[2:5] += 1
    return model


BOTH, ONCE = ("copies", "shared"), ("first", "last")


@pytest.mark.parametrize("into", [*BOTH, *ONCE])
@pytest.mark.parametrize(
    ("of_base", "of_tuned"),
    [*product(BOTH, (*BOTH, *ONCE)), *product(ONCE, BOTH)],  # one side at least knows both names
)
def test_a_tied_change_is_stored_once_and_reaches_every_name(of_base: str, of_tuned: str, into: str) -> None:
    delta = export(stored(Tied(), of_base), stored(tuned(), of_tuned))
    assert len(delta) == 1
    assert not delta.dense
    merged, expected = merge(stored(Tied(), into), delta), stored(tuned(), into)
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], expected[name]) for name in expected)


@pytest.mark.parametrize("once", ONCE)
def test_a_delta_that_knows_one_name_says_that_the_other_stays(once: str) -> None:
    delta = export(stored(Tied(), once), stored(tuned(), once))
    merged = merge(stored(Tied(), once), delta)
    assert all(torch.equal(tensor, tuned().state_dict()[name]) for name, tensor in merged.items())
    shared = merge(stored(Tied(), "shared"), delta)
    assert shared["head.weight"] is shared["emb.weight"]
    assert torch.equal(shared["head.weight"], tuned().emb.weight)
    with pytest.warns(RSTWarning, match=names("emb.weight", "head.weight")):
        merge(stored(Tied(), "copies"), delta)


@pytest.mark.parametrize("encoding", ["coo", "packed"])
@pytest.mark.parametrize("base", ["live", "copies", "first"])
def test_untying_is_refused_where_both_share_memory_and_exact_where_not(
    tmp_path: Path, base: str, encoding: str
) -> None:
    apart = Tied(tied=False)
    with torch.no_grad():
        apart.head.weight += 1  # the embedding stays: a delta of the head alone would change both
    path = tmp_path / "delta.safetensors"
    export(Tied() if base == "live" else stored(Tied(), base), apart).save(path, encoding)
    delta = SparseDelta.load(path)
    model = Tied()
    tokens = torch.zeros(1, 2, dtype=torch.long)
    for put in (
        delta.apply,
        delta.prepare,
        lambda model: RSTModel(model).add_adapter("untied", delta),
        lambda model: mixed_forward(model.eval(), {"untied": delta}, ["untied"], (tokens,)),
    ):
        with refused(ParameterMismatchError, "emb.weight", parameter="head.weight"):
            put(model)
    assert all(torch.equal(tensor, Tied().state_dict()[name]) for name, tensor in model.state_dict().items())
    free = Tied(tied=False)
    delta.apply(free)
    merged = merge(stored(Tied(), "copies"), delta)
    for name, tensor in apart.state_dict().items():
        assert torch.equal(free.state_dict()[name], tensor)
        assert torch.equal(merged[name], tensor)


def test_a_model_that_has_two_tensors_for_one_of_the_delta_gets_and_gives_back_both() -> None:
    delta, model = export(Tied(), tuned()), Tied(tied=False)
    tokens = torch.arange(9)[None]
    with delta.apply(model):
        assert all(torch.equal(one, tuned().state_dict()[name]) for name, one in model.state_dict().items())
        wanted = model(tokens)
    assert all(torch.equal(one, Tied().state_dict()[name]) for name, one in model.state_dict().items())
    torch.testing.assert_close(mixed_forward(model.eval(), {"a": delta}, ["a"], (tokens,)), wanted)


@pytest.mark.parametrize("how", ["shared", "file", "copies"])
def test_either_name_means_the_tensor(tmp_path: Path, how: str) -> None:
    base, wt = stored(Tied(), "shared"), stored(tuned(), "shared")
    if how != "shared":
        base, wt = stored(Tied(), "copies"), stored(tuned(), "copies")
    if how == "file":
        save_file(base, tmp_path / "base.safetensors")
        save_file(wt, tmp_path / "tuned.safetensors")
    sides = (tmp_path / "base.safetensors", tmp_path / "tuned.safetensors") if how == "file" else (base, wt)
    for pattern in ("head", "emb"):
        assert not export(*sides, exclude_modules=[pattern])
        whole = export(*sides, modules_to_save=[pattern])
        assert not whole.parameters
        assert torch.equal(merge(base, whole)["head.weight"], wt["head.weight"])


@pytest.mark.parametrize("name", ["head", "emb"])
def test_a_trainer_takes_either_name(name: str) -> None:
    trainer = ResidualSparseTrainer(Tied(), RSTConfig(target_modules=[name]))
    assert list(trainer.tracked.sparse) == ["emb.weight"]
    assert ResidualSparseTrainer(Tied(), RSTConfig(modules_to_save=[name])).tracked.saved == ["emb.weight"]
    assert "emb.weight" in ResidualSparseTrainer(Tied(), RSTConfig(exclude_modules=[name])).tracked.frozen
    with refused(ConfigError, "nothing_like_it"):
        ResidualSparseTrainer(Tied(), RSTConfig(target_modules=["nothing_like_it"]))


def test_matrices_alike_by_chance_are_not_tied() -> None:
    base = {"a": torch.zeros(3, 3), "b": torch.zeros(3, 3), "c": torch.arange(9.0).view(3, 3)}
    base["d"] = base["c"].clone()
    wt = {**base, "a": base["a"] + 1, "d": base["d"] + 1}
    merged = merge(base, export(base, wt))
    assert all(torch.equal(merged[name], wt[name]) for name in wt)

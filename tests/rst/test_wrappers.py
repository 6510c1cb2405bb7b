"""A model in a wrapper is the model: trainer, export, merge and apply see the same names and tensors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.parameter import UninitializedParameter
from torch.optim.swa_utils import AveragedModel

from rst import ParameterMismatchError, ResidualSparseTrainer, RSTConfig, RSTModel, export, merge
from tests.refusal import refused


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def tuned() -> nn.Sequential:
    model = network()
    with torch.no_grad():
        model[0].weight += 1
        model[1].running_mean += 1
    return model


class Fabric(nn.Module):
    """As Lightning's Fabric wraps a module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._forward_module = module


WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "RSTModel": RSTModel,
    "AveragedModel": AveragedModel,
    "DataParallel": nn.DataParallel,
    "checkpoint_wrapper": checkpoint_wrapper,
    "compiled": torch.compile,
    "Fabric": Fabric,
    "averaged and compiled": lambda module: AveragedModel(torch.compile(module)),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())
def test_a_wrapped_model_is_exported_and_given_a_delta_as_the_plain_one(wrap: Any, tmp_path: Path) -> None:
    expected = export(network(), tuned())
    assert set(expected.dense) == {"1.running_mean"}
    torch.save(network().state_dict(), tmp_path / "base.pt")
    torch.save(wrap(tuned()).state_dict(), tmp_path / "tuned.pt")
    torch.save({"state_dict": wrap(tuned()).state_dict(), "epoch": 3}, tmp_path / "tuned.ckpt")
    for base, found in (
        (network(), wrap(tuned())),
        (network().state_dict(), wrap(tuned()).state_dict()),
        (wrap(network()).state_dict(), tuned()),
        (tmp_path / "base.pt", tmp_path / "tuned.pt"),
        (tmp_path / "base.pt", tmp_path / "tuned.ckpt"),
    ):
        delta = export(base, found)
        assert delta.parameters == expected.parameters
        assert set(delta.dense) == set(expected.dense)
    served = wrap(network())
    with expected.prepare(served):
        assert torch.equal(next(iter(served.parameters())), tuned()[0].weight)
    expected.apply(served)
    merged = merge(wrap(network()).state_dict(), expected)
    for name, tensor in wrap(tuned()).state_dict().items():
        assert torch.equal(merged[name], tensor)
        assert torch.equal(served.state_dict()[name], tensor)


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())
def test_a_trainer_tracks_what_is_inside(wrap: Any) -> None:
    plain, wrapped = (ResidualSparseTrainer(model, RSTConfig()).tracked for model in (network(), wrap(network())))
    assert list(wrapped.sparse) == list(plain.sparse)
    assert wrapped.buffers == plain.buffers


def test_a_wrapped_block_keeps_its_buffers() -> None:
    model = nn.Sequential(checkpoint_wrapper(network()), nn.Linear(2, 2))
    tracked = ResidualSparseTrainer(model, RSTConfig()).tracked
    assert "0.0.weight" in tracked.sparse
    assert tracked.buffers == ["0.1.running_mean", "0.1.running_var", "0.1.num_batches_tracked"]


class Expanded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 3).expand(8, 3))


def test_parameters_without_memory_of_their_own_are_refused_before_the_training() -> None:
    with refused(ParameterMismatchError, (8, 3), parameter="weight"):
        ResidualSparseTrainer(Expanded(), RSTConfig())
    lazy = nn.Sequential(nn.LazyLinear(3))
    assert isinstance(lazy[0].weight, UninitializedParameter)
    with refused(ParameterMismatchError, parameter="0.weight"):
        ResidualSparseTrainer(lazy, RSTConfig())

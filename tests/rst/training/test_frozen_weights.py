"""What was trained is what is exported: a change that an export would lose is refused, on every route."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from rst import ConfigError, ResidualSparseTrainer, RSTConfig

Routes = {"export": lambda trainer: trainer.export(), "checkpoint": lambda trainer: trainer.state_dict()}


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))


def thaw(tuned: nn.Sequential) -> None:
    tuned[0].weight.requires_grad_(True)


def change(tuned: nn.Sequential) -> None:
    tuned[0].weight.data[1, 2] += 1  # no version counter sees it


def add(tuned: nn.Sequential) -> None:
    tuned.append(nn.Linear(2, 2))


def add_buffer(tuned: nn.Sequential) -> None:
    tuned[1].register_buffer("scale", torch.ones(2))


def remove(tuned: nn.Sequential) -> None:
    tuned[0].bias = None


def move(tuned: nn.Sequential) -> None:
    tuned[1].weight, tuned[1].proj = nn.Parameter(torch.zeros(2, 4)), tuned[1].weight


Lost = {
    "thawed": (thaw, "0.weight"),
    "changed": (change, "0.weight"),
    "added": (add, "2.bias"),
    "buffer": (add_buffer, "1.scale"),
    "removed": (remove, "0.bias"),
    "moved": (move, "1.weight"),
}


@pytest.mark.parametrize("route", Routes)
@pytest.mark.parametrize(("spoil", "parameter"), Lost.values(), ids=Lost)
def test_a_change_that_would_be_lost_is_refused(
    spoil: Callable[[nn.Sequential], None], parameter: str, route: str
) -> None:
    tuned = model()
    trainer = ResidualSparseTrainer(tuned, RSTConfig(threshold=1e-6, target_modules=["1"]))
    trainer.step()
    Routes[route](trainer)
    spoil(tuned)
    with pytest.raises(ConfigError) as caught:
        Routes[route](trainer)
    assert caught.value.parameter == parameter


def test_thawing_is_noticed_at_the_next_step() -> None:
    tuned = model()
    trainer = ResidualSparseTrainer(tuned, RSTConfig(threshold=1e-6, target_modules=["1"]))
    optimizer = torch.optim.SGD(tuned.parameters(), lr=0.1)
    trainer.attach(optimizer)
    thaw(tuned)
    tuned(torch.ones(1, 4)).sum().backward()
    with pytest.raises(ConfigError) as caught:
        optimizer.step()
    assert caught.value.parameter == "0.weight"


def test_a_new_parameter_is_noticed_when_the_optimizer_is_attached() -> None:
    tuned = model()
    trainer = ResidualSparseTrainer(tuned, RSTConfig(threshold=1e-6))
    add(tuned)
    with pytest.raises(ConfigError) as caught:
        trainer.attach(torch.optim.SGD(tuned.parameters(), lr=0.1))
    assert caught.value.parameter == "2.bias"


def test_what_is_frozen_for_a_while_after_the_trainer_was_made_is_exported() -> None:
    tuned = model()
    trainer = ResidualSparseTrainer(tuned, RSTConfig(threshold=0.0, modules_to_save=["1"]))
    tuned[0].requires_grad_(False)
    optimizer = torch.optim.SGD(tuned[1].parameters(), lr=0.1)
    trainer.attach(optimizer)
    tuned[0].requires_grad_(True)
    optimizer.add_param_group({"params": list(tuned[0].parameters())})
    tuned(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert set(trainer.export()) == {"0.weight", "0.bias"}


@pytest.mark.parametrize(
    "weight",
    [torch.eye(3).to_sparse(), torch.zeros(3, dtype=torch.complex64), torch.tensor(3, dtype=torch.int8)],
    ids=["sparse", "complex", "int8"],
)
def test_any_kind_of_tensor_may_be_frozen(weight: torch.Tensor) -> None:
    tuned = model()
    tuned.register_parameter("odd", nn.Parameter(weight, requires_grad=False))
    trainer = ResidualSparseTrainer(tuned, RSTConfig(threshold=0.0, exclude_modules=["odd"]))
    trainer.step()
    with torch.no_grad():
        tuned[0].weight += 1
    assert set(trainer.export()) == {"0.weight"}

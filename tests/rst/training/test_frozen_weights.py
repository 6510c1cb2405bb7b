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


def by_the_user(tuned: nn.Sequential) -> RSTConfig:
    tuned[0].requires_grad_(False)
    return RSTConfig(threshold=0.0, target_modules=["0", "1"])


def by_the_trainer(tuned: nn.Sequential) -> RSTConfig:
    return RSTConfig(threshold=0.0, target_modules=["1"])


def train_a_step(tuned: nn.Sequential, trainer: ResidualSparseTrainer, between: Callable[[nn.Sequential], None]) -> int:
    """The number of tensors of layer 0 in what is exported."""
    optimizer = torch.optim.SGD(tuned.parameters(), lr=0.1)
    trainer.attach(optimizer)
    between(tuned)
    tuned(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    delta = trainer.export()
    return sum(name.startswith("0.") for name in (*delta, *delta.dense))


@pytest.mark.parametrize("spoil", [thaw, change])
@pytest.mark.parametrize(
    ("freeze", "named", "unnamed"),
    [(by_the_user, "while it is trainable", "target_modules"), (by_the_trainer, "target_modules", "while it is")],
)
def test_who_froze_it_decides_what_is_advised(
    freeze: Callable[[nn.Sequential], RSTConfig], named: str, unnamed: str, spoil: Callable[[nn.Sequential], None]
) -> None:
    tuned = model()
    trainer = ResidualSparseTrainer(tuned, freeze(tuned))
    spoil(tuned)
    with pytest.raises(ConfigError) as caught:
        trainer.export()
    text = str(caught.value)
    assert "modules_to_save" in text
    assert named in text
    assert unnamed not in text
    assert ("base_storage" in text) == (spoil is change)


@pytest.mark.parametrize("spoil", [thaw, change])
def test_a_frozen_module_that_is_saved_whole_may_be_thawed_or_changed(spoil: Callable[[nn.Sequential], None]) -> None:
    tuned = model()
    tuned[0].requires_grad_(False)
    trainer = ResidualSparseTrainer(tuned, RSTConfig(threshold=0.0, target_modules=["1"], modules_to_save=["0"]))
    assert train_a_step(tuned, trainer, spoil) == 2


@pytest.mark.parametrize("spoil", [lambda tuned: tuned[0].requires_grad_(True), change])
def test_what_was_trainable_and_targeted_may_be_frozen_thawed_and_changed(
    spoil: Callable[[nn.Sequential], None],
) -> None:
    tuned = model()
    trainer = ResidualSparseTrainer(tuned, RSTConfig(threshold=0.0, target_modules=["0", "1"], base_storage="device"))
    tuned[0].requires_grad_(False)
    assert train_a_step(tuned, trainer, spoil) == (1 if spoil is change else 2)

"""Steps inside the backward pass, against the plain loop, bit for bit."""

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rst import ConfigError, Linear, ResidualSparseTrainer, RSTConfig, Support
from tests.rst.training.test_support import Everything, assert_same, loss

TAU = 1e-3
Build = Callable[[Any], torch.optim.Optimizer]
BUILDS: dict[str, Build] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=5e-4),
    "adamw": lambda p: torch.optim.AdamW(p, lr=3e-3),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=3e-3, foreach=True),
}


def run(
    config: RSTConfig, build: Build, in_backward: bool, micro: int = 1, dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, ResidualSparseTrainer, torch.optim.Optimizer]:
    model = Everything().to(dtype)
    trainer = ResidualSparseTrainer(model, config)
    if in_backward:
        optimizer = trainer.attach_in_backward(build, accumulate=micro)
    else:
        optimizer = build(list(trainer.parameters()))
        trainer.attach(optimizer)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
    for step in range(5):
        for part in range(micro):
            (loss(model, 10 * step + part) / micro).backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    return model, trainer, optimizer


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize(
    "config",
    [
        RSTConfig(threshold=TAU, base_storage="sparse"),
        RSTConfig(threshold=TAU, modules_to_save=["hidden"]),
        RSTConfig(threshold=Linear(1e-4, 1e-2), total_steps=5, base_storage="device"),
        RSTConfig(select="bias"),
    ],
    ids=["sparse", "saved", "schedule", "bias"],
)
def test_it_gives_the_bits_of_the_plain_loop(config: RSTConfig, build: str) -> None:
    model, trainer, optimizer = run(config, BUILDS[build], True)
    plain, wanted, reference = run(config, BUILDS[build], False)
    assert_same(model, plain)
    assert trainer.steps == wanted.steps == 5
    assert trainer.export() == wanted.export()
    assert trainer.export().nnz > 0
    state, other = optimizer.state_dict(), reference.state_dict()
    assert state["param_groups"] == other["param_groups"]
    for number, entries in other["state"].items():
        assert all(
            torch.equal(torch.as_tensor(state["state"][number][key]), torch.as_tensor(value))
            for key, value in entries.items()
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_micro_batches_by_an_explicit_count(dtype: torch.dtype) -> None:
    model, trainer, _ = run(RSTConfig(threshold=TAU), BUILDS["adamw"], True, micro=3, dtype=dtype)
    plain, wanted, _ = run(RSTConfig(threshold=TAU), BUILDS["adamw"], False, micro=3, dtype=dtype)
    assert_same(model, plain)
    assert trainer.steps == wanted.steps == 5


def test_gradients_are_gone_and_weights_have_moved_when_backward_returns() -> None:
    model, before = Everything(), Everything()
    trainer = ResidualSparseTrainer(model, RSTConfig(threshold=0.0))
    seen: list[int] = []
    for weight in model.parameters():
        weight.register_post_accumulate_grad_hook(
            lambda _: seen.append(sum(w.grad is not None for w in model.parameters()))
        )
    trainer.attach_in_backward(BUILDS["sgd"])
    loss(model, 0).backward()
    assert set(seen) == {1}  # one gradient at a time
    assert all(weight.grad is None for weight in model.parameters())
    assert not torch.equal(model.embed.weight, before.embed.weight)


def test_a_parameter_without_a_gradient_in_one_pass_is_stepped_by_step() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor, both: bool) -> Tensor:
            total: Tensor = self.a(x).square().sum() + (self.b(x).square().sum() if both else 0)
            return total

    models = []
    for in_backward in (True, False):
        model = Branches()
        trainer = ResidualSparseTrainer(model, RSTConfig(threshold=Linear(1e-3, 2e-1), total_steps=4))
        if in_backward:
            optimizer = trainer.attach_in_backward(BUILDS["sgd"], accumulate=2)
        else:
            optimizer = BUILDS["sgd"](model.parameters())
            trainer.attach(optimizer)
        for both in (True, False, False, False):
            for branch in (both, False):
                model(torch.ones(2, 4), branch).backward()
            optimizer.step()
            optimizer.zero_grad()
        models.append(model)
    assert_same(*models)


def test_a_closure_runs_the_backward_pass() -> None:
    model, plain = Everything(), Everything()
    trainer, reference = (ResidualSparseTrainer(m, RSTConfig(threshold=TAU)) for m in (model, plain))
    optimizer, other = trainer.attach_in_backward(BUILDS["adamw"]), BUILDS["adamw"](plain.parameters())
    reference.attach(other)
    for step in range(3):
        optimizer.step(lambda step=step: loss(model, step).backward())
        other.zero_grad()
        other.step(lambda step=step: loss(plain, step).backward())
    assert_same(model, plain)


class TestRefusals:
    def test_a_missing_step(self) -> None:
        model = Everything()
        ResidualSparseTrainer(model, RSTConfig(threshold=TAU)).attach_in_backward(BUILDS["sgd"])
        loss(model, 0).backward()
        with pytest.raises(ConfigError, match=r"pass 2 of a step of 1"):
            loss(model, 1).backward()

    @pytest.mark.parametrize("settings", [{"select": "top", "ratio": 0.1}, {"every": 2}, {"every": 0}])
    def test_selections_that_need_all_parameters(self, settings: dict[str, Any]) -> None:
        trainer = ResidualSparseTrainer(Everything(), RSTConfig(**settings))
        with pytest.raises(ConfigError, match=str(next(iter(settings.values())))):
            trainer.attach_in_backward(BUILDS["sgd"])

    def test_a_support(self) -> None:
        model = Everything()
        trainer = ResidualSparseTrainer(model, RSTConfig(select="support"), support=Support.random(model, 0.1))
        with pytest.raises(ConfigError, match="support"):
            trainer.attach_in_backward(BUILDS["sgd"])

    def test_no_passes_and_twice(self) -> None:
        trainer = ResidualSparseTrainer(Everything(), RSTConfig(threshold=TAU))
        with pytest.raises(ConfigError, match="accumulate=0"):
            trainer.attach_in_backward(BUILDS["sgd"], accumulate=0)
        trainer.attach_in_backward(BUILDS["sgd"])
        with pytest.raises(ConfigError, match="already"):
            trainer.attach_in_backward(BUILDS["sgd"])

    def test_after_detach_nothing_steps(self) -> None:
        model, before = Everything(), Everything()
        trainer = ResidualSparseTrainer(model, RSTConfig(threshold=TAU))
        trainer.attach_in_backward(BUILDS["sgd"])
        trainer.detach()
        loss(model, 0).backward()
        assert_same(model, before)
        assert all(weight.grad is not None for weight in model.parameters())


def test_when_backward_returns_neither_gradients_nor_copies_of_w0_are_left() -> None:
    weight = (wide := nn.Linear(37, 41)).weight
    model = nn.Sequential(wide, nn.Linear(41, 37))
    trainer = ResidualSparseTrainer(model, RSTConfig(threshold=1.0, base_storage="sparse"))
    optimizer = trainer.attach_in_backward(lambda p: torch.optim.SGD(p, lr=0.05))
    for _ in range(2):
        model(torch.ones(2, 37)).square().sum().backward()
        tensors = [one for one in gc.get_objects() if type(one) in (Tensor, nn.Parameter) and not one.is_meta]
        assert {one.data_ptr() for one in tensors if one.shape == (41, 37)} == {weight.data_ptr()}
        optimizer.step()

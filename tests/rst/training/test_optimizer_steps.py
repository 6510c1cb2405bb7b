"""Optimisers that wrap others: the selection comes after the last write, whoever steps."""

import copy
import pickle
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rst import ConfigError, ResidualSparseTrainer, RSTConfig
from rst.training.optimizer_steps import show_averaged_weights

TAU = 1e-2


class Lookahead(Optimizer):
    """Writes an average of slow and fast weights after every step of the one inside, and has no hooks of its own."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.fast = torch.optim.Adam(parameters, lr=TAU * 1.5)
        self.param_groups, self.state, self.defaults = self.fast.param_groups, self.fast.state, {}
        self._slow = [weight.detach().clone() for weight in self.param_groups[0]["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.fast.step()
        for weight, slow in zip(self.param_groups[0]["params"], self._slow, strict=True):
            weight.copy_((weight + slow) / 2)


class Hooked(Lookahead):
    """The same, with what every optimiser of torch has."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        parameters = list(parameters)
        Optimizer.__init__(self, parameters, {})
        super().__init__(parameters)


class TwoCalls(Optimizer):
    """Stepped by methods of other names, as SAM is."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__(parameters, {})
        self.inner = torch.optim.SGD(self.param_groups, lr=TAU / 100)

    @torch.no_grad()
    def second_step(self) -> None:
        for weight in self.param_groups[0]["params"]:
            kept = weight.clone()
            weight += 1  # the first of the two calls, which looks at the loss beside the weights
            weight.copy_(kept)
        self.inner.step()

    def step(self, closure: Any = None) -> None:
        raise NotImplementedError


class Bare(Optimizer):
    """Without a hook and without another one inside."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.param_groups = [{"params": list(parameters)}]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for weight in self.param_groups[0]["params"]:
            weight -= TAU / 100 * weight.grad


Kinds: dict[str, tuple[Callable[[Any], Any], str]] = {
    "lookahead": (Lookahead, "step"),
    "with hooks": (Hooked, "step"),
    "two calls": (TwoCalls, "second_step"),
    "bare": (Bare, "step"),
}


def run(tuned: nn.Module, step: Callable[[], None], times: int = 3) -> None:
    for _ in range(times):
        tuned.zero_grad()
        tuned(torch.ones(2, 4)).square().sum().backward()
        step()


@pytest.mark.parametrize(("make", "method"), Kinds.values(), ids=Kinds)
def test_no_weight_is_left_moved_by_less_than_tau(make: Callable[[Any], Any], method: str) -> None:
    torch.manual_seed(0)
    tuned = nn.Linear(4, 2)
    trainer = ResidualSparseTrainer(tuned, RSTConfig(threshold=TAU))
    optimizer = make(tuned.parameters())
    trainer.attach(optimizer)
    if make is Hooked:
        torch.optim.lr_scheduler.ConstantLR(optimizer)  # puts a step of its own on it
    run(tuned, getattr(optimizer, method))
    assert trainer.steps == 3
    moved = torch.cat([(w - trainer.base[n]).abs().reshape(-1) for n, w in tuned.named_parameters()])
    assert not ((moved > 0) & (moved <= TAU)).any()


def test_detached_the_optimizer_is_as_it_was() -> None:
    tuned = nn.Linear(4, 2)
    trainer = ResidualSparseTrainer(tuned, RSTConfig(threshold=TAU))
    optimizer = Lookahead(tuned.parameters())
    trainer.attach(optimizer)
    trainer.detach()
    run(tuned, optimizer.step)
    assert trainer.steps == 0
    trainer.attach(optimizer)
    run(tuned, optimizer.step)
    assert trainer.steps == 3


def test_a_step_that_fails_is_none_and_the_next_one_counts() -> None:
    tuned = nn.Linear(4, 2)
    trainer = ResidualSparseTrainer(tuned, RSTConfig(threshold=TAU))
    optimizer = Lookahead(tuned.parameters())
    trainer.attach(optimizer)
    slow, optimizer._slow = optimizer._slow, []
    with pytest.raises(ValueError, match="zip"):
        run(tuned, optimizer.step, times=1)
    optimizer._slow = slow
    run(tuned, optimizer.step, times=1)
    assert trainer.steps == 1


def test_a_copy_of_the_optimizer_is_not_followed() -> None:
    tuned = nn.Linear(4, 2)
    trainer = ResidualSparseTrainer(tuned, RSTConfig(threshold=TAU))
    optimizer = Hooked(tuned.parameters())
    trainer.attach(optimizer)
    copied, other = copy.deepcopy((optimizer, tuned))
    assert "step" not in vars(copied)
    assert pickle.loads(pickle.dumps(optimizer)).param_groups
    assert other is not tuned


def test_the_averaged_weights_of_a_schedule_free_optimizer_are_asked_for_inside_a_wrapper() -> None:
    class ScheduleFree(torch.optim.SGD):
        shown = False

        def eval(self) -> None:
            self.shown = True

    tuned = nn.Linear(4, 2)
    outer = TwoCalls(tuned.parameters())
    outer.inner = inner = ScheduleFree(tuned.parameters(), lr=0.1)
    show_averaged_weights(outer)
    assert inner.shown


def test_averaged_weights_may_be_shown_between_steps() -> None:
    class ScheduleFree(torch.optim.SGD):
        @torch.no_grad()
        def eval(self) -> None:
            for weight in self.param_groups[0]["params"]:
                weight.mul_(1)

    torch.manual_seed(0)
    tuned = nn.Linear(40, 20)
    trainer = ResidualSparseTrainer(tuned, RSTConfig(ratio=0.01, total_steps=2))
    base = {name: weight.detach().clone() for name, weight in tuned.named_parameters()}
    optimizer = ScheduleFree(tuned.parameters(), lr=TAU)
    trainer.attach(optimizer)
    for _ in range(2):
        tuned(torch.randn(2, 40)).square().sum().backward()
        optimizer.step()
        show_averaged_weights(optimizer)
    assert 0 < trainer.export().nnz <= 9
    assert all(torch.equal(trainer.base[name], weight) for name, weight in base.items())


def test_steps_in_backward_are_refused_for_an_optimizer_that_wraps_another() -> None:
    trainer = ResidualSparseTrainer(nn.Linear(4, 2), RSTConfig(threshold=TAU))
    with pytest.raises(ConfigError) as caught:
        trainer.attach_in_backward(Lookahead)
    assert "Lookahead" in str(caught.value)
    trainer.attach(torch.optim.SGD(trainer.parameters(), lr=TAU))

"""Gradients at the support of linear layers: the dense ones' values, and no dense product."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rst import ResidualSparseTrainer, RSTConfig, Support
from rst.numerics.exactness import bit_equal

SUPPORT = RSTConfig(select="support")
Loss = Callable[[nn.Module, Tensor], Tensor]


class Two(nn.Module):
    """Two linear layers that are large enough; the second's output is written to in place."""

    def __init__(self, kind: Callable[[], nn.Module] = lambda: nn.Linear(300, 256)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = kind(), nn.Linear(256, 300)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.second(self.first(x).tanh()), inplace=True)


def squares(model: nn.Module, x: Tensor) -> Tensor:
    total: Tensor = model(x).float().square().mean()
    return total


def inputs(step: int) -> Tensor:
    return torch.randn(3, 5, 300, generator=torch.Generator().manual_seed(step))


def start(model: nn.Module) -> tuple[ResidualSparseTrainer, torch.optim.Optimizer]:
    trainer = ResidualSparseTrainer(model, SUPPORT, support=Support.random(model, 0.01))
    optimizer = torch.optim.SGD(trainer.parameters(), lr=0.5)
    trainer.attach(optimizer)
    return trainer, optimizer


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, loss: Loss = squares) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss(model, inputs(step).to(next(model.parameters()).dtype)).backward()
        optimizer.step()


def never_dense(model: nn.Module) -> list[str]:
    return [name for name, weight in model.named_parameters() if not weight.requires_grad]


def dense_gradients(model: nn.Module, support: Support, loss: Loss, step: int) -> list[Tensor]:
    dense = copy.deepcopy(model).requires_grad_(True)
    for layer in dense.modules():
        layer._forward_hooks.clear()
    for weight in dense.parameters():
        weight._post_accumulate_grad_hooks = None  # type: ignore[attr-defined]
    loss(dense, inputs(step).to(next(model.parameters()).dtype)).backward()
    weights = dict(dense.named_parameters())
    return [weights[name].grad.reshape(-1)[support[name].long()] for name in support]  # type: ignore[union-attr]


def with_checkpoints(model: nn.Module, x: Tensor) -> Tensor:
    total: Tensor = checkpoint(lambda x: squares(model, x), x, use_reentrant=False)
    return total


def with_autocast(model: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return squares(model, x)


def conv1d() -> nn.Module:
    layer: nn.Module = pytest.importorskip("transformers").pytorch_utils.Conv1D(256, 300)
    return layer


@pytest.mark.parametrize(
    ("kind", "dtype", "loss"),
    [
        ("linear", torch.float32, squares),
        ("linear", torch.float64, squares),
        ("linear", torch.bfloat16, squares),
        ("linear", torch.float32, with_checkpoints),
        ("linear", torch.float32, with_autocast),
        ("conv1d", torch.float32, squares),
    ],
)
def test_after_one_step_gradients_are_sampled_and_equal_the_dense_ones(
    kind: str, dtype: torch.dtype, loss: Loss
) -> None:
    model = Two(conv1d if kind == "conv1d" else lambda: nn.Linear(300, 256)).to(dtype)
    trainer, optimizer = start(model)
    assert never_dense(model) == []
    train(model, optimizer, range(1), loss)
    assert never_dense(model) == ["first.weight", "second.weight"]
    support = Support.random(model.requires_grad_(True), 0.01)
    model.first.weight.requires_grad_(False), model.second.weight.requires_grad_(False)
    optimizer.zero_grad()
    loss(model, inputs(1).to(dtype)).backward()
    found = [values.grad for values in trainer.parameters()]
    wanted = dense_gradients(model, support, loss, 1)
    half = dtype == torch.bfloat16 or loss is with_autocast
    for sampled, dense in zip(found, wanted, strict=True):
        assert sampled is not None
        assert sampled.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        error = (sampled - dense).norm() / dense.norm()
        assert error < (1e-2 if half else 1e-5)
    assert all(weight.grad is None for weight in model.parameters())


def test_the_first_step_is_that_of_the_dense_gradient_bit_for_bit() -> None:
    model, reference = Two(), Two()
    trainer, optimizer = start(model)
    train(model, optimizer, range(1))
    plain = torch.optim.SGD(reference.parameters(), lr=0.5)
    train(reference, plain, range(1))
    weights = dict(reference.named_parameters())
    for name, values in trainer.named_parameters():
        places = Support.random(Two(), 0.01)[name].long()
        assert bit_equal(values.detach(), weights[name].detach().reshape(-1)[places])


def test_a_weight_that_is_used_without_its_layer_keeps_its_dense_gradient() -> None:
    class Twice(Two):
        def forward(self, x: Tensor) -> Tensor:
            hidden = super().forward(x)
            return hidden + nn.functional.linear(self.first(x), self.second.weight)

    model = Twice()
    trainer, optimizer = start(model)
    train(model, optimizer, range(1))
    assert never_dense(model) == ["first.weight"]
    optimizer.zero_grad()
    squares(model, inputs(1)).backward()
    wanted = dense_gradients(model, trainer.to_support(), squares, 1)
    for (name, values), dense in zip(trainer.named_parameters(), wanted, strict=False):
        if name == "second.weight":
            assert values.grad is not None
            torch.testing.assert_close(values.grad, dense)


def test_a_layer_without_a_gradient_yet_stays_on_trial() -> None:
    class Gated(Two):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("gate", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            hidden: Tensor = self.second(self.gate * self.first(x)) + x
            return hidden

    model = Gated()
    _, optimizer = start(model)
    train(model, optimizer, range(1))
    assert never_dense(model) == []
    model.gate.fill_(1.0)
    train(model, optimizer, range(1, 2))
    assert never_dense(model) == ["first.weight", "second.weight"]


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_models_train_alike() -> None:
    model, compiled = Two(), Two()
    _, optimizer = start(model)
    _, other = start(compiled)
    train(model, optimizer, range(3))
    fast: Any = torch.compile(compiled, backend="aot_eager")
    train(compiled, other, range(3), lambda _, x: squares(fast, x))
    assert never_dense(compiled) == ["first.weight", "second.weight"]
    for left, right in zip(model.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(left, right)


def test_without_gradients_the_layers_are_plain() -> None:
    model = Two()
    start(model)
    with torch.no_grad():
        assert torch.equal(model(inputs(0)), Two()(inputs(0)))


def test_small_layers_and_dense_supports_stay_dense() -> None:
    small = nn.Linear(20, 20)
    trainer = ResidualSparseTrainer(small, SUPPORT, support=Support.random(small, 0.01))
    optimizer = torch.optim.SGD(trainer.parameters(), lr=0.5)
    trainer.attach(optimizer)
    small(torch.ones(2, 20)).sum().backward()
    optimizer.step()
    dense = nn.Linear(300, 256)
    trainer = ResidualSparseTrainer(dense, SUPPORT, support=Support.random(dense, 0.1))
    optimizer = torch.optim.SGD(trainer.parameters(), lr=0.5)
    trainer.attach(optimizer)
    dense(torch.ones(2, 300)).sum().backward()
    optimizer.step()
    assert small.weight.requires_grad
    assert dense.weight.requires_grad

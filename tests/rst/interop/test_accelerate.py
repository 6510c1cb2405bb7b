"""An accelerate loop needs no wrapper: `attach` the prepared optimiser, register the trainer for checkpointing.

model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
trainer = ResidualSparseTrainer(model, config)
trainer.attach(optimizer)
accelerator.register_for_checkpointing(trainer)
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from rst import Linear, ResidualSparseTrainer, RSTConfig
from rst.numerics.exactness import bit_equal

accelerate = pytest.importorskip("accelerate")

pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")

CONFIG = RSTConfig(threshold=Linear(1e-4, 5e-3), total_steps=12, modules_to_save=["3"])
EPOCHS, SAMPLES, BATCH, ACCUMULATION = 3, 64, 8, 2


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    """Accelerate keeps its settings for the whole process."""
    accelerate.state.AcceleratorState._reset_state(True)
    accelerate.state.GradientState._reset_state()
    yield
    accelerate.state.AcceleratorState._reset_state(True)
    accelerate.state.GradientState._reset_state()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


def loader() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(SAMPLES, 8, generator=generator)
    return DataLoader(TensorDataset(inputs, torch.randint(4, (SAMPLES,), generator=generator)), BATCH)


def loss_of(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(inputs).float(), labels)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=3e-3)


class Run:
    """The accelerate loop."""

    def __init__(self, precision: str) -> None:
        self.accelerator = accelerate.Accelerator(
            cpu=True, mixed_precision=precision, gradient_accumulation_steps=ACCUMULATION
        )
        model = network()
        self.model, self.optimizer, self.loader = self.accelerator.prepare(model, adamw(model), loader())
        self.trainer = ResidualSparseTrainer(self.model, CONFIG)
        self.trainer.attach(self.optimizer)
        self.accelerator.register_for_checkpointing(self.trainer)

    def train(self, epochs: int) -> None:
        for _ in range(epochs):
            for inputs, labels in self.loader:
                with self.accelerator.accumulate(self.model):
                    self.accelerator.backward(loss_of(self.model, inputs, labels))
                    self.optimizer.step()
                    self.optimizer.zero_grad()


def by_hand(precision: str) -> tuple[nn.Module, ResidualSparseTrainer]:
    model = network()
    optimizer, trainer = adamw(model), ResidualSparseTrainer(model, CONFIG)
    for _ in range(EPOCHS):
        for index, (inputs, labels) in enumerate(loader()):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                logits = model(inputs)
            (nn.functional.cross_entropy(logits.float(), labels) / ACCUMULATION).backward()
            if index % ACCUMULATION == ACCUMULATION - 1:
                optimizer.step()
                trainer.step()
                optimizer.zero_grad()
    return model, trainer


def assert_same(left: nn.Module, right: nn.Module) -> None:
    for (name, a), (_, b) in zip(left.state_dict().items(), right.state_dict().items(), strict=True):
        assert bit_equal(a, b), name


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_loop_equals_the_one_by_hand(precision: str) -> None:
    run = Run(precision)
    run.train(EPOCHS)
    model, trainer = by_hand(precision)
    assert run.trainer.steps == trainer.steps == EPOCHS * SAMPLES // BATCH // ACCUMULATION
    assert_same(run.accelerator.unwrap_model(run.model), model)
    assert run.trainer.export() == trainer.export()
    assert 0 < trainer.export().density < 1


def test_saved_state_continues_bit_for_bit(tmp_path: Path) -> None:
    whole = Run("no")
    whole.train(1)
    whole.accelerator.save_state(str(tmp_path))
    whole.train(EPOCHS - 1)
    again = Run("no")
    with torch.no_grad():
        again.model[0].weight += 1
    again.accelerator.load_state(str(tmp_path))
    assert again.trainer.steps == 4
    again.train(EPOCHS - 1)
    assert_same(again.model, whole.model)
    assert again.trainer.export() == whole.trainer.export()


def test_a_step_skipped_by_the_scaler_is_not_counted() -> None:
    run = Run("no")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    optimizer = accelerate.optimizer.AcceleratedOptimizer(run.optimizer.optimizer, scaler=scaler)
    inputs, labels = next(iter(run.loader))
    for factor in (1.0, float("inf"), 1.0):
        scaler.scale(loss_of(run.model, inputs, labels) * factor).backward()
        optimizer.step()
        assert optimizer.step_was_skipped == (factor != 1.0)
        optimizer.zero_grad()
    assert run.trainer.steps == 2

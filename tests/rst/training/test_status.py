"""What a trainer says of itself while it trains."""

import pytest
import torch
from torch import nn

from rst import Constant, ResidualSparseTrainer, RSTConfig, TrainingStatus


def train(config: RSTConfig, steps: int) -> ResidualSparseTrainer:
    torch.manual_seed(0)
    model = nn.Linear(20, 20)
    trainer = ResidualSparseTrainer(model, config)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer.attach(optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 20)).square().mean().backward()
        optimizer.step()
    return trainer


def test_before_a_step_nothing_is_known_but_the_weights() -> None:
    status = train(RSTConfig(), 0).status()
    assert status == TrainingStatus(steps=0, kept=0, weights=420, target=None, boundary=None)
    assert status.logged() == {"rst_share": 0.0}


def test_the_share_follows_its_target() -> None:
    config = RSTConfig(ratio=0.05, total_steps=8)
    trainer = train(config, 2)
    status = trainer.status()
    assert status.target == config.ratio_at(2 / 8)
    assert status.share == pytest.approx(status.target, abs=1 / 420)
    assert status.kept == trainer.count_changed()
    changes = torch.cat([(weight - trainer.base[name]).abs().ravel() for name, weight in trainer.named_parameters()])
    assert status.boundary is not None
    assert changes[changes > 0].min() >= status.boundary > 0
    trainer.export()
    assert (trainer.status().target, trainer.status().kept) == (0.05, 21)


def test_a_boundary_where_everything_is_kept_is_zero() -> None:
    assert train(RSTConfig(ratio=Constant(1.0), total_steps=8), 1).status().boundary == 0.0


def test_a_threshold_is_the_boundary() -> None:
    status = train(RSTConfig(threshold=0.01), 1).status()
    assert (status.boundary, status.target) == (0.01, None)
    assert status.logged().keys() == {"rst_share", "rst_boundary"}


def test_biases_have_neither() -> None:
    status = train(RSTConfig(select="bias"), 1).status()
    assert (status.kept, status.target, status.boundary) == (20, None, None)

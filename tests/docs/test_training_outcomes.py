"""A block that trains nothing, or something else than it asks for, is noticed."""

import pytest
import torch
from torch import nn

from rst import Constant, ResidualSparseTrainer, RSTConfig
from tests.docs.training_outcomes import check_outcomes, train_as_always, trains

CODE = "optimizer.step()\ntrainer.export()"


def trained(config: RSTConfig, steps: bool = True) -> tuple[nn.Linear, ResidualSparseTrainer]:
    torch.manual_seed(0)
    model = nn.Linear(20, 20)
    trainer = ResidualSparseTrainer(model, config)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if steps:
        trainer.attach(optimizer)
    train_as_always(model, optimizer, torch.randn(8, 20))
    return model, trainer


def test_a_training_that_meets_its_share_passes() -> None:
    check_outcomes(CODE, {"trainer": trained(RSTConfig(ratio=Constant(0.1), total_steps=9))[1]})


def test_others_fail() -> None:
    with pytest.raises(AssertionError, match="no step"):
        check_outcomes(CODE, {"trainer": trained(RSTConfig(ratio=0.1), steps=False)[1]})
    with pytest.raises(AssertionError, match="kept=0"):
        check_outcomes(CODE, {"trainer": trained(RSTConfig(threshold=9.0))[1]})
    model, trainer = trained(RSTConfig(ratio=Constant(0.1), total_steps=9, base_storage="device"))
    with torch.no_grad():
        model.weight += 1
    with pytest.raises(AssertionError, match="kept=4"):
        check_outcomes(CODE, {"trainer": trainer})


def test_which_blocks_train() -> None:
    assert trains(CODE)
    assert trains("trainer.attach(optimizer)")
    assert not trains("publisher.publish()  # after optimizer.step()")
    assert not trains("delta = trainer.export()")

"""Adapters of an `RSTModel` that train a support: off and on, beside others, saved, and gone on with."""

from pathlib import Path

import pytest
import torch
from torch import nn

from rst import ConfigError, RSTConfig, RSTModel, Support, get_rst_model
from rst.numerics.exactness import bit_equal
from tests.rst.training.test_support import Everything, assert_same, loss, train
from tests.rst.training.test_support_linear import SUPPORT, Two, inputs, squares


def optimizer_of(model: RSTModel, lr: float = 3e-3) -> torch.optim.Optimizer:
    assert model.trainer is not None
    optimizer = torch.optim.AdamW(model.trainer.parameters(), lr=lr)
    model.trainer.attach(optimizer)
    return optimizer


def wrapped(dtype: torch.dtype = torch.float32, steps: int = 3) -> tuple[RSTModel, torch.optim.Optimizer]:
    base = Everything().to(dtype)
    model = get_rst_model(base, SUPPORT, support=Support.random(base, 0.2))
    optimizer = optimizer_of(model)
    train(model, optimizer, range(steps))
    return model, optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_off_and_on_change_nothing_of_a_run(dtype: torch.dtype) -> None:
    (model, optimizer), (plain, reference) = wrapped(dtype), wrapped(dtype)
    with model.disable_adapter():
        assert_same(model.base_model, Everything().to(dtype))
    train(model, optimizer, range(3, 6))
    train(plain, reference, range(3, 6))
    assert_same(model.base_model, plain.base_model)
    merged = model.merge_and_unload()
    assert_same(merged, plain.merge_and_unload())
    loss(merged, 0).backward()
    assert all(weight.grad is not None for weight in merged.parameters())


@pytest.mark.parametrize(
    "config", [SUPPORT, RSTConfig(threshold=1e-3, base_storage="sparse")], ids=["support", "sparse"]
)
def test_what_was_saved_goes_on_where_it_was(config: RSTConfig, tmp_path: Path) -> None:
    base = Everything()
    support = Support.random(base, 0.2) if config.select == "support" else None
    model = get_rst_model(base, config, support=support)
    train(model, optimizer_of(model), range(3))
    model.save_pretrained(tmp_path)
    again = RSTModel.from_pretrained(Everything(), tmp_path, is_trainable=True)
    assert_same(again.base_model, model.base_model)
    assert again.trainer is not None
    before = again.trainer.export()
    assert before.nnz > 0
    train(again, optimizer_of(again), range(3, 6))
    assert again.trainer.export() != before
    if support is not None:
        assert again.trainer.export().nnz <= before.nnz
    assert_same(again.unload(), Everything())


def test_a_support_given_for_a_delta_is_the_one_that_trains(tmp_path: Path) -> None:
    model, _ = wrapped()
    model.save_pretrained(tmp_path)
    again = RSTModel(Everything())
    wide = Support.random(Everything(), 1.0)
    again.add_adapter("more", tmp_path, is_trainable=True, support=wide)
    assert again.trainer is not None
    assert sum(values.numel() for values in again.trainer.parameters()) == wide.nnz
    with pytest.raises(ConfigError, match="other"):
        again.add_adapter("other", tmp_path, support=wide)


def test_an_adapter_that_is_off_or_deleted_gathers_nothing() -> None:
    base = Two()
    model = get_rst_model(base, SUPPORT, support=Support.random(base, 0.01))
    first = model.trainer
    assert first is not None
    optimizer = optimizer_of(model)
    for step in range(2):
        optimizer.zero_grad()
        squares(model, inputs(step)).backward()
        optimizer.step()
    optimizer.zero_grad()
    model.add_adapter("second", SUPPORT, support=Support.random(base, 0.01, seed=1))
    second = model.trainer
    assert second is not None
    squares(model, inputs(2)).backward()
    assert all(values.grad is None for values in first.parameters())
    assert all(values.grad is not None for values in second.parameters())
    model.delete_adapter("second")
    model.set_adapter("default")
    squares(model, inputs(3)).backward()
    grads = [values.grad for values in first.parameters()]
    assert all(gradient is not None and bool(gradient.any()) for gradient in grads)
    model.delete_adapter("default")
    for values in first.parameters():
        values.grad = None
    squares(model, inputs(4)).backward()
    assert all(values.grad is None for values in first.parameters())
    assert all(weight.grad is not None for weight in base.parameters())
    fresh: nn.Module = Two()
    assert all(bit_equal(a, b) for a, b in zip(base.parameters(), fresh.parameters(), strict=True))

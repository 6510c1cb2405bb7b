"""What a training says of itself: warnings where its result is hardly what was meant."""

import gc
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from rst import ResidualSparseTrainer, RSTConfig, export, get_rst_model
from rst.errors import RSTWarning


@pytest.fixture(autouse=True)
def every_warning_is_an_error() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8))


def train(tuned: nn.Module, config: RSTConfig, *, steps: int, lr: float) -> ResidualSparseTrainer:
    trainer = ResidualSparseTrainer(tuned, config)
    optimizer = torch.optim.AdamW(tuned.parameters(), lr=lr)
    trainer.attach(optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        tuned(torch.randn(4, 32)).square().mean().backward()
        optimizer.step()
    return trainer


def test_a_share_that_is_met_needs_no_word() -> None:
    trainer = train(model(), RSTConfig(ratio=0.01, total_steps=8), steps=8, lr=1e-3)
    assert trainer.export().nnz == round(0.01 * (32 * 64 + 64 + 64 * 8 + 8))


def test_nothing_kept_names_threshold_and_learning_rate() -> None:
    trainer = train(model(), RSTConfig(threshold=0.1), steps=1, lr=1e-3)
    with pytest.warns(RSTWarning, match=r"2,632 .* 1 steps.*threshold=0.1"):
        assert not trainer.export().nnz


def test_nearly_everything_kept_gives_the_share() -> None:
    trainer = train(model(), RSTConfig(threshold=1e-6), steps=2, lr=1e-3)
    with pytest.warns(RSTWarning, match=r"\d\d\.\d% of 2,632 .*threshold=1e-06"):
        trainer.export()


def test_fewer_changes_than_asked_for_give_both_shares() -> None:
    tuned = model()
    trainer = train(tuned, RSTConfig(ratio=0.5), steps=1, lr=1e-3)
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            weight.copy_(trainer.base[name])
        tuned[0].bias[:26] += 1
    with pytest.warns(RSTWarning, match=r"0\.988% of 2,632 .*ratio=0.5 .*50\.000%"):
        trainer.export()


def test_a_forgotten_attach_is_heard_at_the_export() -> None:
    tuned = model()
    trainer = ResidualSparseTrainer(tuned, RSTConfig(ratio=0.01))
    with torch.no_grad():
        tuned[0].weight += 1
    with pytest.warns(RSTWarning, match=r"2,048 of 2,632 .* 26 .*attach"):
        trainer.export()


def test_w0_that_is_the_tuned_model_is_heard_at_the_export() -> None:
    with pytest.warns(RSTWarning, match="2,632"):
        ResidualSparseTrainer(model(), RSTConfig()).export()


def test_a_second_trainer_is_heard_while_the_first_is_in_use() -> None:
    tuned = model()
    first = ResidualSparseTrainer(tuned, RSTConfig())
    with pytest.warns(RSTWarning, match="Sequential"):
        second = ResidualSparseTrainer(tuned, RSTConfig())
    del first, second
    gc.collect()
    ResidualSparseTrainer(tuned, RSTConfig())


def test_an_export_amid_a_run_leaves_the_model_alone() -> None:
    tuned = model()
    trainer = train(tuned, RSTConfig(ratio=0.01, total_steps=100), steps=5, lr=1e-3)
    before = {name: weight.clone() for name, weight in tuned.state_dict().items()}
    delta = trainer.export(select=False)
    assert delta.nnz == trainer.count_changed() > 0.5 * 2632
    assert all(torch.equal(weight, before[name]) for name, weight in tuned.state_dict().items())


def test_a_run_that_ends_before_its_share_has_fallen_says_what_the_export_cuts() -> None:
    trainer = train(model(), RSTConfig(ratio=0.01, total_steps=1000), steps=20, lr=1e-3)
    kept = trainer.status().kept
    with pytest.warns(RSTWarning, match=f"{kept:,} of 2,632 .* 20 steps.* 26: .*total_steps=1000"):
        assert trainer.export().nnz == 26


def test_a_checkpoint_from_before_its_share_has_fallen_says_so_too(tmp_path: Path) -> None:
    tuned = model()
    trainer = train(tuned, RSTConfig(ratio=0.01, total_steps=1000), steps=20, lr=1e-3)
    torch.save({"state_dict": tuned.state_dict(), "rst": trainer.state_dict()}, tmp_path / "mid.ckpt")
    changed = trainer.count_changed()
    with pytest.warns(RSTWarning, match=f"mid.ckpt: {changed:,} weights .* 26, .*ratio=0.01.*--threshold 0"):
        assert export(None, tmp_path / "mid.ckpt").nnz == 26
    assert export(None, tmp_path / "mid.ckpt", threshold=0).nnz == changed


def test_a_second_adapter_whose_base_was_put_back_is_no_second_trainer() -> None:
    wrapped = get_rst_model(model(), RSTConfig(ratio=0.01, total_steps=8), adapter_name="a")
    assert wrapped.trainer is not None
    wrapped.trainer.attach(torch.optim.AdamW(wrapped.parameters(), lr=1e-3))
    wrapped.add_adapter("b", RSTConfig(ratio=0.01, total_steps=8))
    with pytest.warns(RSTWarning, match="Sequential.* 0 steps"):
        ResidualSparseTrainer(wrapped.base_model, RSTConfig(ratio=0.01))

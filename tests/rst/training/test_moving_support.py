"""A support that moves: what leaves is w0 again, what stays keeps its states, what comes has the steepest slope."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rst import ConfigError, ResidualSparseTrainer, RSTConfig, Support
from rst.numerics.exactness import bit_equal, bits
from tests.rst.training.test_support import Everything, Optimizers, assert_same, loss, train
from tests.rst.training.test_support_linear import SUPPORT, Two, dense_gradients, inputs, squares

Start = tuple[nn.Module, ResidualSparseTrainer, torch.optim.Optimizer]


def start(optimizer: str = "adamw", dtype: torch.dtype = torch.float32, ratio: float = 0.2, steps: int = 3) -> Start:
    model = Everything().to(dtype)
    trainer = ResidualSparseTrainer(model, SUPPORT, support=Support.random(model, ratio))
    stepped = Optimizers[optimizer](trainer.parameters())
    trainer.attach(stepped)
    train(model, stepped, range(steps))
    stepped.zero_grad()
    return model, trainer, stepped


def move(model: nn.Module, trainer: ResidualSparseTrainer, share: float = 0.3, batches: Any = (7,)) -> int:
    return trainer.move_support(batches, share, loss=lambda step: loss(model, step))


def entries(trainer: ResidualSparseTrainer, optimizer: torch.optim.Optimizer) -> dict[str, dict[int, list[Tensor]]]:
    """By parameter and position: value, w0, and the optimiser's states."""
    record = trainer.state_dict()["support"]
    found = {}
    for name, values in trainer.named_parameters():
        states = [state for state in optimizer.state[values].values() if state.shape == values.shape]
        columns = [record[name]["values"], record[name]["origin"], *states]
        rows = zip(record[name]["positions"].tolist(), *(column.clone() for column in columns), strict=True)
        found[name] = {place: list(row) for place, *row in rows}
    return found


@pytest.mark.parametrize("optimizer", Optimizers)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_least_moved_leave_the_steepest_come_and_the_others_keep_what_they_have(
    optimizer: str, dtype: torch.dtype
) -> None:
    model, trainer, stepped = start(optimizer, dtype)
    origin = dict(Everything().to(dtype).named_parameters())
    reference = Everything().to(dtype)
    reference.load_state_dict(model.state_dict())
    loss(reference, 7).backward()
    slopes = {name: weight.grad.abs().reshape(-1) for name, weight in reference.named_parameters()}  # type: ignore[union-attr]
    before = entries(trainer, stepped)
    moved = move(model, trainer)
    after = entries(trainer, stepped)
    weights = dict(model.named_parameters())
    count = 0
    for name, was in before.items():
        now = after[name]
        gone, new = was.keys() - now.keys(), now.keys() - was.keys()
        assert len(gone) == len(new) == round(0.3 * len(was))
        count += len(new)
        assert list(now) == sorted(now)
        moves = {place: abs(row[0].item() - row[1].item()) for place, row in was.items()}
        assert max((moves[p] for p in gone), default=0) <= min(moves[p] for p in now.keys() & was.keys())
        outside = [place for place in range(weights[name].numel()) if place not in was]
        steepest = slopes[name][outside].sort(descending=True).values[: len(new)]
        assert torch.equal(slopes[name][sorted(new)].sort(descending=True).values, steepest)
        for place in now.keys() & was.keys():
            assert all(torch.equal(a, b) for a, b in zip(was[place], now[place], strict=True))
        for place in new:
            value, base, *states = now[place]
            assert value == base == origin[name].reshape(-1)[place]
            assert states
            assert not any(states)
        flat, base = bits(weights[name].detach()).reshape(-1), bits(origin[name].detach()).reshape(-1)
        mask = torch.ones_like(flat, dtype=torch.bool)
        mask[list(now)] = False
        assert torch.equal(flat[mask], base[mask])
    assert moved == count > 0
    assert all(values.grad is None for values in trainer.parameters())


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.one_of(st.none(), st.floats(0.05, 1.0)), min_size=1, max_size=6),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_after_any_moves_the_delta_merges_bit_for_bit_and_has_the_supports_size(
    plan: list[float | None], dtype: torch.dtype
) -> None:
    model, trainer, optimizer = start(dtype=dtype, ratio=0.1, steps=1)
    sizes = {name: values.numel() for name, values in trainer.named_parameters()}
    for step, share in enumerate(plan):
        if share is None:
            train(model, optimizer, range(step, step + 1))
        else:
            optimizer.zero_grad()
            move(model, trainer, share, batches=(step, step + 1))
    delta = trainer.export()
    assert {name: values.numel() for name, values in trainer.named_parameters()} == sizes
    assert all(delta[name].indices.numel() <= sizes[name] for name in delta)
    fresh = Everything().to(dtype)
    delta.apply(fresh)
    assert_same(fresh, model)


def test_a_run_that_has_moved_resumes_bit_for_bit(tmp_path: Any) -> None:
    model, trainer, optimizer = start()
    move(model, trainer)
    torch.save({"optimizer": optimizer.state_dict(), "rst": trainer.state_dict()}, tmp_path / "m.pt")
    train(model, optimizer, range(3, 6))
    second, resumed, other = start(steps=0)  # its own support lies where the first's did
    saved = torch.load(tmp_path / "m.pt", weights_only=True)
    other.load_state_dict(saved["optimizer"])
    resumed.load_state_dict(saved["rst"])
    train(second, other, range(3, 6))
    assert resumed.export() == trainer.export()


@pytest.mark.parametrize("steps", [0, 1, 2], ids=["on trial", "tried", "sampled"])
@pytest.mark.parametrize("how", ["move", "resume"])
def test_sampled_gradients_follow(steps: int, how: str) -> None:
    def begin() -> Start:
        model = Two()
        trainer = ResidualSparseTrainer(model, SUPPORT, support=Support.random(model, 0.01))
        optimizer = torch.optim.SGD(trainer.parameters(), lr=0.5, momentum=0.9)
        trainer.attach(optimizer)
        for step in range(steps):
            optimizer.zero_grad()
            squares(model, inputs(step)).backward()
            optimizer.step()
        optimizer.zero_grad()
        return model, trainer, optimizer

    model, trainer, optimizer = begin()
    trainer.move_support([8, 9], 0.5, loss=lambda step: squares(model, inputs(step)))
    if how == "resume":
        record = trainer.state_dict()
        model, trainer, optimizer = begin()
        trainer.load_state_dict(record)
    for step in range(10, 12):
        optimizer.zero_grad()
        squares(model, inputs(step)).backward()
        record = trainer.state_dict()["support"]
        places = Support.at(
            {n: one["positions"] for n, one in record.items()}, {n: p.shape for n, p in model.named_parameters()}
        )
        wanted = dense_gradients(model, places, squares, step)
        for values, dense in zip(trainer.parameters(), wanted, strict=True):
            assert values.grad is not None
            torch.testing.assert_close(values.grad, dense)
        optimizer.step()
    assert not any(weight.requires_grad for name, weight in model.named_parameters() if name.endswith("weight"))


def test_fewer_move_where_no_other_weight_has_a_gradient() -> None:
    model = nn.Linear(4, 1, bias=False)
    trainer = ResidualSparseTrainer(model, SUPPORT, support=Support.random(model, 0.5))
    trainer.attach(torch.optim.SGD(trainer.parameters(), lr=0.1))
    (taken,) = (places.tolist() for places in trainer.state_dict()["support"]["weight"]["positions"][None])
    free = next(place for place in range(4) if place not in taken)
    x = nn.functional.one_hot(torch.tensor([free]), 4).float()
    assert trainer.move_support([x], 1.0, loss=lambda x: model(x).sum()) == 1
    assert free in trainer.state_dict()["support"]["weight"]["positions"].tolist()


class TestRefusals:
    @pytest.mark.parametrize("share", [0.0, -0.5, 1.5])
    def test_a_share_out_of_range(self, share: float) -> None:
        model, trainer, _ = start()
        with pytest.raises(ConfigError, match=str(share)):
            move(model, trainer, share)

    def test_without_a_support_or_an_optimiser(self) -> None:
        model = Everything()
        trainer = ResidualSparseTrainer(model, RSTConfig(threshold=0.1))
        with pytest.raises(ConfigError):
            move(model, trainer)
        model, trainer, _ = start()
        trainer.detach()
        with pytest.raises(ConfigError):
            move(model, trainer)

    @pytest.mark.parametrize("wrong", ["gradients", "no batch", "states", "written"])
    def test_nothing_has_changed_then(self, wrong: str) -> None:
        model, trainer, optimizer = start()
        before = trainer.state_dict()["support"]
        kept = {name: one["positions"].clone() for name, one in before.items()}
        name, values = next(trainer.named_parameters())
        if wrong == "gradients":
            loss(model, 0).backward()
        elif wrong == "states":
            optimizer.state[values]["history"] = torch.zeros(2, values.numel())
        elif wrong == "written":
            with torch.no_grad():
                dict(model.named_parameters())[name].add_(1)
        with pytest.raises(ConfigError) as caught:
            move(model, trainer, batches=() if wrong == "no batch" else (7,))
        assert caught.value.parameter == (None if wrong == "no batch" else name)
        after = trainer.state_dict()["support"] if wrong != "written" else before
        assert all(bit_equal(after[name]["positions"], places) for name, places in kept.items())

"""Which weights a support has, and training them against a masked dense loop, bit for bit."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rst import CheckpointError, ConfigError, ParameterMismatchError, ResidualSparseTrainer, RSTConfig, Support, export
from rst.numerics.exactness import bit_equal

SUPPORT = RSTConfig(select="support")
Optimizers: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=5e-4),
    "adamw": lambda p: torch.optim.AdamW(p, lr=3e-3),
}


class Everything(nn.Module):
    """Tied embedding, convolution, norms and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(12, 8)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.norm = nn.LayerNorm(8)
        self.hidden = nn.Linear(8, 8)
        self.out = nn.Linear(8, 12)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.conv(self.embed(tokens).transpose(1, 2)).transpose(1, 2)
        logits: Tensor = self.out(torch.relu(self.hidden(self.norm(hidden))))
        return logits


def loss(model: nn.Module, step: int) -> Tensor:
    tokens = torch.randint(12, (4, 6), generator=torch.Generator().manual_seed(step))
    return nn.functional.cross_entropy(model(tokens).float().flatten(0, 1), tokens.roll(1, 1).flatten())


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss(model, step).backward()
        optimizer.step()


def assert_same(left: nn.Module, right: nn.Module) -> None:
    for (name, a), (_, b) in zip(left.state_dict().items(), right.state_dict().items(), strict=True):
        assert bit_equal(a, b), name


def mask_of(support: Support, name: str, weight: Tensor) -> Tensor:
    mask = torch.zeros(weight.numel(), dtype=torch.bool)
    if name in support:
        mask[support[name].long()] = True
    return mask.view(weight.shape)


@pytest.mark.parametrize("optimizer", Optimizers)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_training_equals_masked_dense_training_bit_for_bit(optimizer: str, dtype: torch.dtype) -> None:
    model, reference = Everything().to(dtype), Everything().to(dtype)
    support = Support.random(model, 0.2)
    trainer = ResidualSparseTrainer(model, SUPPORT, support=support)
    stepped = Optimizers[optimizer](trainer.parameters())
    trainer.attach(stepped)

    weights = dict(reference.named_parameters())
    masks = {name: mask_of(support, name, weight) for name, weight in weights.items()}
    wide = torch.float32 if dtype == torch.bfloat16 else dtype
    masters = {name: nn.Parameter(weight.detach().to(wide, copy=True)) for name, weight in weights.items()}
    origin = {name: weight.detach().clone() for name, weight in weights.items()}
    dense = Optimizers[optimizer](masters.values())
    for step in range(8):
        train(model, stepped, range(step, step + 1))
        reference.zero_grad()
        loss(reference, step).backward()
        for name, weight in weights.items():
            assert weight.grad is not None
            masters[name].grad = weight.grad.to(wide)
        dense.step()
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(torch.where(masks[name], masters[name].to(dtype), origin[name]))
    assert_same(model, reference)
    delta = trainer.export()
    assert 0 < delta.nnz <= support.nnz == round(0.2 * sum(weight.numel() for weight in weights.values()))
    fresh = Everything().to(dtype)
    delta.apply(fresh)
    assert_same(fresh, model)


def test_the_optimiser_and_the_gradients_are_those_of_the_support_alone() -> None:
    model = Everything()
    support = Support.random(model, 0.1)
    trainer = ResidualSparseTrainer(model, SUPPORT, support=support)
    assert sum(values.numel() for values in trainer.parameters()) == support.nnz
    loss(model, 0).backward()
    assert all(weight.grad is None for weight in model.parameters())
    assert all(values.grad is not None and values.grad.shape == values.shape for values in trainer.parameters())


def test_micro_batches_add_up() -> None:
    gradients = []
    for micro in (1, 2):
        model = Everything()
        trainer = ResidualSparseTrainer(model, SUPPORT, support=Support.random(model, 0.1))
        for _ in range(micro):
            (loss(model, 0) / micro).backward()
        gradients.append([values.grad for values in trainer.parameters()])
    torch.testing.assert_close(*gradients)


def test_a_module_saved_whole_trains_beside_the_support() -> None:
    model = Everything()
    config = RSTConfig(select="support", modules_to_save=["hidden"])
    support = Support.random(model, 0.1, config=config)
    trainer = ResidualSparseTrainer(model, config, support=support)
    assert not any(name.startswith("hidden") for name in support)
    optimizer = Optimizers["adamw"](trainer.parameters())
    trainer.attach(optimizer)
    train(model, optimizer, range(3))
    assert trainer.export().dense.keys() == {"hidden.weight", "hidden.bias"}
    assert [name for name, _ in trainer.named_parameters()][-2:] == ["hidden.weight", "hidden.bias"]


@pytest.mark.parametrize("optimizer", Optimizers)
def test_resuming_continues_bit_for_bit_and_the_checkpoint_alone_gives_the_delta(optimizer: str, tmp_path: Any) -> None:
    def start(model: nn.Module) -> tuple[ResidualSparseTrainer, torch.optim.Optimizer]:
        trainer = ResidualSparseTrainer(model, SUPPORT, support=Support.random(model, 0.1))
        stepped = Optimizers[optimizer](trainer.parameters())
        trainer.attach(stepped)
        return trainer, stepped

    whole = Everything().bfloat16()
    trainer, stepped = start(whole)
    train(whole, stepped, range(6))
    wanted = trainer.export()
    first = Everything().bfloat16()
    trainer, stepped = start(first)
    train(first, stepped, range(3))
    torch.save(
        {"model": first.state_dict(), "optimizer": stepped.state_dict(), "rst": trainer.state_dict()}, tmp_path / "m.pt"
    )
    assert export(None, tmp_path / "m.pt") == trainer.export()
    for restored_first in (True, False):
        second = Everything().bfloat16()
        saved = torch.load(tmp_path / "m.pt", weights_only=True)
        if restored_first:
            second.load_state_dict(saved["model"])
        trainer, stepped = start(second)
        stepped.load_state_dict(saved["optimizer"])
        trainer.load_state_dict(saved["rst"])  # without the model's state: its weights differ at the support alone
        train(second, stepped, range(3, 6))
        assert trainer.steps == 6
        assert trainer.export() == wanted


def test_the_record_has_w0_of_the_support_alone(tmp_path: Any) -> None:
    model = Everything()
    trainer = ResidualSparseTrainer(model, SUPPORT, support=Support.random(model, 0.1))
    optimizer = Optimizers["adamw"](trainer.parameters())
    trainer.attach(optimizer)
    train(model, optimizer, range(2))
    state = trainer.state_dict()
    assert not state["base"]
    assert sum(one["origin"].numel() for one in state["kept"].values()) == trainer.to_support().nnz

    torch.save({"model": model.state_dict(), "rst": state}, tmp_path / "m.pt")
    assert export(None, tmp_path / "m.pt") == trainer.export()
    with pytest.raises(ConfigError, match="support"):
        ResidualSparseTrainer(Everything(), RSTConfig(threshold=0.1)).load_state_dict(state)
    name, places = next(iter(state["kept"].items()))
    state["kept"][name] = {**places, "positions": places["positions"] + 1000}
    torch.save({"model": model.state_dict(), "rst": state}, tmp_path / "m.pt")
    with pytest.raises(ParameterMismatchError) as caught:
        export(None, tmp_path / "m.pt")
    assert caught.value.parameter == name
    state["kept"][name] = {"positions": "none"}
    torch.save({"model": model.state_dict(), "rst": state}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError):
        export(None, tmp_path / "m.pt")


def test_one_support_follows_another_once_that_is_detached() -> None:
    model = Everything()
    first = ResidualSparseTrainer(model, SUPPORT, support=Support.random(model, 0.1))
    optimizer = Optimizers["sgd"](first.parameters())
    first.attach(optimizer)
    second = ResidualSparseTrainer(model, SUPPORT, support=Support.random(model, 0.1, seed=1))
    with pytest.raises(ConfigError) as caught:
        loss(model, 0).backward()
    assert caught.value.parameter in dict(model.named_parameters())
    first.detach()
    for values in first.parameters():
        values.grad = None
    loss(model, 0).backward()
    assert all(values.grad is None for values in first.parameters())
    assert all(values.grad is not None for values in second.parameters())
    second.detach()
    first.attach(optimizer)
    loss(model, 0).backward()
    assert any(values.grad is not None for values in first.parameters())


def test_a_warm_up_hands_its_weights_and_w0_on() -> None:
    model = Everything()
    warm = ResidualSparseTrainer(model, RSTConfig(ratio=0.1))
    optimizer = Optimizers["adamw"](model.parameters())
    warm.attach(optimizer)
    train(model, optimizer, range(3))
    support, kept = warm.to_support(), warm.export()
    warm.detach()
    del warm
    trainer = ResidualSparseTrainer(model, SUPPORT, support=support)
    assert dict(trainer.export()) == dict(kept)
    optimizer = Optimizers["adamw"](trainer.parameters())
    trainer.attach(optimizer)
    train(model, optimizer, range(3, 6))
    delta = trainer.export()
    assert delta != kept
    base = Everything()
    delta.apply(base)
    assert_same(base, model)
    again = trainer.to_support()
    assert {name: again[name].tolist() for name in again} == {name: delta[name].indices.tolist() for name in delta}


class TestConstructors:
    def test_random_is_the_same_anywhere_and_exact(self) -> None:
        model = Everything()
        total = sum(weight.numel() for weight in model.parameters())
        for ratio in (0.01, 0.3, 1.0):
            first, second = Support.random(model, ratio), Support.random(model, ratio)
            assert first.nnz == round(ratio * total)
            assert all(torch.equal(first[name], second[name]) for name in first)
        other = Support.random(model, 0.3, seed=1)
        assert any(not torch.equal(other[name], positions) for name, positions in Support.random(model, 0.3).items())
        large = nn.Linear(300, 300)
        assert Support.random(large, 0.001).nnz == 90
        assert repr(Support.random(large, 0.001)) == "Support(90 weights of 1 parameters)"

    def test_magnitude_takes_the_largest_weights(self) -> None:
        model = Everything()
        assert_largest(Support.from_magnitude(model, 0.2), {n: p.detach().abs() for n, p in model.named_parameters()})

    @pytest.mark.parametrize("times_weight", [False, True])
    @pytest.mark.parametrize("batches", [1, 3])
    def test_gradients_take_the_steepest(self, batches: int, times_weight: bool) -> None:
        model, reference = Everything(), Everything()
        for step in range(batches):
            loss(reference, step).backward()
        scores = {
            name: ((p.grad * p.detach()) if times_weight else p.grad).abs()
            for name, p in reference.named_parameters()
            if p.grad is not None
        }
        support = Support.from_gradients(
            model, range(batches), 0.25, loss=lambda step: loss(model, step), times_weight=times_weight
        )
        assert_largest(support, scores)  # four times a quarter: every weight is a candidate
        assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())
        assert_same(model, reference)

    def test_of_several_batches_the_first_names_the_candidates(self) -> None:
        model, first = Everything(), Everything()
        loss(first, 0).backward()
        support = Support.from_gradients(model, range(3), 0.02, loss=lambda step: loss(model, step))
        gradients = torch.cat([p.grad.abs().flatten() for p in first.parameters() if p.grad is not None])
        floor = gradients.sort(descending=True).values[4 * support.nnz - 1]
        for name, weight in first.named_parameters():
            if name in support:
                assert weight.grad is not None
                assert weight.grad.abs().flatten()[support[name].long()].min() >= floor

    def test_gradients_leave_buffers_and_other_parameters_alone(self) -> None:
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        before = copy.deepcopy(model)
        config = RSTConfig(target_modules=["0"])
        support = Support.from_gradients(
            model, [torch.randn(8, 4)], 0.2, loss=lambda batch: model(batch).square().sum(), config=config
        )
        assert set(support) <= {"0.weight", "0.bias"}
        assert all(parameter.grad is None for parameter in model.parameters())
        assert_same(model, before)

    def test_a_mapping_is_a_batch_of_a_model_that_returns_its_loss(self) -> None:
        class Output:
            def __init__(self, loss: Tensor) -> None:
                self.loss = loss

        class WithLoss(nn.Linear):
            def forward(self, x: Tensor) -> Any:
                return Output(super().forward(x).square().sum())

        assert Support.from_gradients(WithLoss(4, 4), [{"x": torch.randn(2, 4)}], 0.2).nnz == 4

    def test_of_a_delta(self) -> None:
        base, tuned = Everything(), Everything()
        with torch.no_grad():
            tuned.hidden.weight[2, 3] += 1
        support = Support.from_delta(export(base, tuned))
        assert {name: places.tolist() for name, places in support.items()} == {"hidden.weight": [19]}
        assert support.shapes == {"hidden.weight": (8, 8)}


def assert_largest(support: Support, scores: Mapping[str, Tensor]) -> None:
    chosen = torch.cat([mask_of(support, name, score).flatten() for name, score in scores.items()])
    flat = torch.cat([score.flatten() for score in scores.values()])
    assert chosen.sum() == support.nnz == round(support.nnz / flat.numel() * flat.numel())
    assert flat[chosen].min() >= flat[~chosen].max() * (1 - 1e-5)


class TestRefusals:
    def test_support_and_selection_go_together(self) -> None:
        model = Everything()
        with pytest.raises(ConfigError, match="no support"):
            ResidualSparseTrainer(model, SUPPORT)
        with pytest.raises(ConfigError, match="top"):
            ResidualSparseTrainer(model, support=Support.random(model, 0.1))
        with pytest.raises(ConfigError, match="mmap"):
            RSTConfig(select="support", base_storage="mmap")

    def test_another_models_support(self) -> None:
        model = Everything()
        there = {"nothing": torch.tensor([0])}
        with pytest.raises(ConfigError) as missing:
            ResidualSparseTrainer(model, SUPPORT, support=Support.at(there, {"nothing": (2,)}))
        assert missing.value.parameter == "nothing"
        with pytest.raises(ParameterMismatchError) as shape:
            ResidualSparseTrainer(
                model, SUPPORT, support=Support.at({"norm.weight": torch.tensor([0])}, {"norm.weight": (2,)})
            )
        assert shape.value.parameter == "norm.weight"
        with pytest.raises(ConfigError):
            ResidualSparseTrainer(model, SUPPORT, support=Support.at({}, {}))

    @pytest.mark.parametrize("positions", [[-1, 2], [3, 3], [64], [0.5]])
    def test_positions_that_are_none(self, positions: list[Any]) -> None:
        with pytest.raises(ParameterMismatchError) as caught:
            Support.at({"w": torch.tensor(positions)}, {"w": (8, 8)})
        assert caught.value.parameter == "w"

    @pytest.mark.parametrize("ratio", [0.0, 1.5, -1.0, 1e-9])
    def test_ratios_that_keep_nothing(self, ratio: float) -> None:
        for choose in (Support.random, Support.from_magnitude):
            with pytest.raises(ConfigError, match=str(ratio)):
                choose(Everything(), ratio)

    def test_no_batch_and_gradients_already_there(self) -> None:
        model = Everything()
        with pytest.raises(ConfigError):
            Support.from_gradients(model, [], 0.1)
        loss(model, 0).backward()
        with pytest.raises(ConfigError):
            Support.from_gradients(model, [0], 0.1, loss=lambda step: loss(model, step))

    def test_an_optimiser_of_the_models_parameters(self) -> None:
        model = Everything()
        trainer = ResidualSparseTrainer(model, SUPPORT, support=Support.random(model, 0.1))
        with pytest.raises(ConfigError, match=r"trainer\.parameters"):
            trainer.attach(Optimizers["sgd"](model.parameters()))

    def test_a_state_of_another_size(self) -> None:
        model = Everything()
        state = ResidualSparseTrainer(Everything(), SUPPORT, support=Support.random(model, 0.2)).state_dict()
        trainer = ResidualSparseTrainer(model, SUPPORT, support=Support.random(model, 0.1))
        before = [values.detach().clone() for values in trainer.parameters()]
        with pytest.raises(ConfigError, match=r"bias|weight"):
            trainer.load_state_dict(state)
        assert all(torch.equal(values, was) for values, was in zip(trainer.parameters(), before, strict=True))

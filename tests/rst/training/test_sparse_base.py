"""w0 where it differs alone: what is there between steps, and what becomes of writes that nobody announced."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rst import ConfigError, Constant, ParameterMismatchError, ResidualSparseTrainer, RSTConfig, merge
from tests.rst.training.test_trainer import TAU, Optimizers, small_model, train


def trained(model: nn.Module, storage: Any = "sparse", **settings: Any) -> tuple[ResidualSparseTrainer, Any]:
    trainer = ResidualSparseTrainer(model, RSTConfig(base_storage=storage, **{"threshold": TAU, **settings}))
    optimizer = Optimizers["sgd"](model.parameters())
    trainer.attach(optimizer)
    return trainer, optimizer


def bytes_kept(trainer: ResidualSparseTrainer, model: nn.Module) -> int:
    return len(pickle.dumps(trainer)) - sum(weight.nbytes for weight in model.parameters())


def after_a_step(storage: Any, **settings: Any) -> tuple[ResidualSparseTrainer, nn.Module]:
    model = nn.Linear(64, 64)
    trainer, optimizer = trained(model, storage, **settings)
    model(torch.randn(4, 64)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return trainer, model


@pytest.mark.parametrize("storage", [None, "sparse"])
def test_between_steps_there_is_no_copy_of_w0(storage: Any) -> None:
    share = Constant(0.05)
    sparse = bytes_kept(*after_a_step(storage, threshold=None, ratio=share, total_steps=10))
    copied = bytes_kept(*after_a_step("device", threshold=None, ratio=share, total_steps=10))
    assert copied - sparse > 0.8 * 65 * 64 * 4


def test_where_nearly_everything_differs_a_copy_is_smaller() -> None:
    trainer, model = after_a_step(None, threshold=0.0)
    assert bytes_kept(trainer, model) < bytes_kept(*after_a_step("device", threshold=0.0)) + 2000
    assert trainer.count_changed() == 65 * 64


def test_a_step_without_attach_says_what_it_needs() -> None:
    model = small_model()
    trainer = ResidualSparseTrainer(model, RSTConfig(base_storage="sparse"))
    with torch.no_grad():
        model[3].weight.add_(1.0)
    with pytest.raises(ConfigError, match="attach") as caught:
        trainer.step()
    assert caught.value.parameter == "3.weight"


@pytest.mark.parametrize("storage", [None, "sparse"])
def test_a_write_outside_of_a_step_is_noticed(storage: Any) -> None:
    model = small_model()
    trainer, optimizer = trained(model, storage)
    train(model, optimizer, 2)
    with torch.no_grad():
        model[0].bias.mul_(2.0)
    for use in (trainer.export, trainer.count_changed, lambda: train(model, optimizer, 1), trainer.state_dict):
        with pytest.raises(ConfigError, match="1 times") as caught:
            use()
        assert caught.value.parameter == "0.bias"


def test_without_an_optimiser_the_default_keeps_a_copy() -> None:
    model = small_model()
    trainer = ResidualSparseTrainer(model, RSTConfig(threshold=TAU))
    with torch.no_grad():
        model[3].weight[0, 0] += 1
    trainer.step()
    assert trainer.export().nnz == 1


def test_parameters_of_another_optimiser_keep_their_copy() -> None:
    models = {storage: small_model() for storage in (None, "device")}
    deltas = []
    for storage, model in models.items():
        trainer = ResidualSparseTrainer(model, RSTConfig(threshold=TAU, base_storage=storage))
        first, last = (torch.optim.SGD(model[part].parameters(), lr=0.05) for part in (0, 3))
        trainer.attach(last)
        for _ in range(3):
            model(torch.randn(8, 8, generator=torch.Generator().manual_seed(0))).square().mean().backward()
            first.step()
            last.step()
        deltas.append(trainer.export())
    assert dict(deltas[0]) == dict(deltas[1])
    assert any(name.startswith("0.") for name in deltas[0])


def test_a_copy_of_a_trainer_goes_on_by_itself() -> None:
    model = small_model()
    trainer, optimizer = trained(model)
    train(model, optimizer, 3)
    other = copy.deepcopy(trainer)
    assert other.export() == trainer.export()
    stepped = Optimizers["sgd"](other.model.parameters())
    other.attach(stepped)
    train(other.model, stepped, 2)
    assert other.export() != trainer.export()


def test_a_dtype_change_is_refused_by_name() -> None:
    trainer, _ = trained(small_model())
    trainer.model.half()
    with pytest.raises(ParameterMismatchError) as caught:
        trainer.select()
    assert caught.value.parameter == "0.weight"


def clamp(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data.clamp_(-0.1, 0.1)


def average(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(0.9)


def reorder(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data.flip(0)


@pytest.mark.parametrize("write", [clamp, average, reorder])
@pytest.mark.parametrize("last", [True, False], ids=["after the last step", "between steps"])
def test_a_write_that_torch_does_not_count_is_told_of_and_a_copy_of_w0_bears_it(write, last: bool) -> None:
    def run(storage: str | None) -> tuple[dict[str, Tensor], nn.Module, ResidualSparseTrainer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        trainer = ResidualSparseTrainer(model, RSTConfig(ratio=0.01, total_steps=8, base_storage=storage))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        trainer.attach(optimizer)
        for step in range(8):
            optimizer.zero_grad()
            model(torch.randn(8, 64)).square().mean().backward()
            optimizer.step()
            if step == (7 if last else 5):
                write(model)
        return before, model, trainer

    for storage in (None, "sparse"):
        with pytest.raises(ConfigError) as caught:
            run(storage)[2].export()
        assert caught.value.parameter is not None
        assert "base_storage" in caught.value.reason
    before, model, trainer = run("device")
    merged = merge(before, trainer.export())
    assert all(torch.equal(merged[name], tensor) for name, tensor in model.state_dict().items())

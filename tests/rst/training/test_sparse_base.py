"""w0 where it differs alone: what is there between steps, and what becomes of writes that nobody announced."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rst import ConfigError, Constant, ParameterMismatchError, ResidualSparseTrainer, RSTConfig, merge
from rst.training.support import Support
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


class Decay(torch.optim.Optimizer):
    """Steps another optimiser, which no attribute that is known leads to, and then shrinks the weights."""

    def __init__(self, other: torch.optim.Optimizer) -> None:
        super().__init__([weight for group in other.param_groups for weight in group["params"]], {})
        self.step_inside = other.step

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.step_inside()
        for group in self.param_groups:
            for weight in group["params"]:
                weight.mul_(0.999)


@pytest.mark.parametrize("attached", ["inner", "outer"])
def test_an_optimiser_around_the_attached_one_is_to_be_attached_itself(attached: str) -> None:
    model = small_model()
    trainer = ResidualSparseTrainer(model, RSTConfig(threshold=TAU))
    inner = torch.optim.SGD(model.parameters(), lr=0.05)
    outer = Decay(inner)
    trainer.attach(inner if attached == "inner" else outer)
    if attached == "outer":
        train(model, outer, 3)
        assert trainer.export().nnz
        return
    train(model, outer, 1)
    with pytest.raises(ConfigError) as caught:
        trainer.export()
    text = str(caught.value)
    assert "SGD" in text
    assert 'base_storage="device"' in text
    assert "trainer.attach" not in text


def test_restored_weights_are_told_of_with_what_bears_them_and_a_detached_trainer_says_attach() -> None:
    def restore(storage: str | None, *, detach: bool = False) -> ResidualSparseTrainer:
        model = small_model()
        trainer, optimizer = trained(model, storage)
        train(model, optimizer, 2)
        best = copy.deepcopy(model.state_dict())
        train(model, optimizer, 1)
        if detach:
            trainer.detach()
        model.load_state_dict(best)
        return trainer

    for storage in (None, "sparse"):
        with pytest.raises(ConfigError) as caught:
            restore(storage).export()
        assert 'base_storage="device"' in str(caught.value)
        assert "trainer.attach" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"trainer\.attach"):
        restore("sparse", detach=True).export()
    assert restore("device").export().nnz


def test_with_a_support_its_own_values_are_to_be_written_for_a_copy_of_w0_is_refused() -> None:
    model = small_model()
    trainer = ResidualSparseTrainer(model, RSTConfig(select="support"), support=Support.random(model, 0.1))
    optimizer = torch.optim.SGD(trainer.parameters(), lr=0.05)
    trainer.attach(optimizer)
    train(model, optimizer, 1)
    kept = {name: weight.clone() for name, weight in model.state_dict().items()}
    values = [value.detach().clone() for value in trainer.parameters()]
    train(model, optimizer, 1)
    with torch.no_grad():
        for value, old in zip(trainer.parameters(), values, strict=True):
            value.copy_(old)
    trainer.select()
    for name, weight in model.named_parameters():
        assert torch.equal(weight, kept[name])
    with torch.no_grad():
        model[0].weight.mul_(2.0)
    with pytest.raises(ConfigError) as caught:
        trainer.export()
    assert "trainer.parameters()" in str(caught.value)
    assert "base_storage" not in str(caught.value)

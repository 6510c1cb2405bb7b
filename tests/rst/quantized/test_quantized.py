"""Sparse deltas beside layers that bitsandbytes and torchao quantised: trained, saved, served, mixed, merged."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rst import (
    ConfigError,
    ParameterMismatchError,
    ResidualSparseTrainer,
    RSTConfig,
    RSTModel,
    RSTWarning,
    SparseDelta,
    Support,
    WrongBaseError,
    convert,
    export,
    merge,
    mixed_forward,
)
from rst.numerics.exactness import bit_equal
from rst.quantized import QuantizedTrainer, quantized_layers, random_support
from tests.rst.quantized.quantized_models import QUANTIZERS, Net

# what the libraries say of themselves
pytestmark = pytest.mark.filterwarnings("ignore:::torch", "ignore:::torchao", "ignore:::bitsandbytes")


@pytest.fixture(params=QUANTIZERS)
def quantizer(request: pytest.FixtureRequest) -> Any:
    return QUANTIZERS[request.param]


def batch(step: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(6, 5, 64, generator=generator).to(dtype), torch.randint(3, (6,), generator=generator)


def answer(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(batch()[0].to(dtype_of(model)))
    return found


def dtype_of(model: nn.Module) -> torch.dtype:
    return next(one.dtype for one in model.parameters() if one.is_floating_point())


def train(model: nn.Module, trainer: QuantizedTrainer, steps: range = range(3)) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(trainer.parameters(), lr=0.5, momentum=0.9)
    take(model, optimizer, steps)
    return optimizer


def take(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        inputs, labels = batch(step)
        optimizer.zero_grad()
        logits = model.train()(inputs.to(dtype_of(model))).mean(1)
        nn.functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()


def trained(quantizer: Any) -> tuple[Net, QuantizedTrainer]:
    model = quantizer(Net())
    trainer = QuantizedTrainer(model, random_support(model, 0.05), modules_to_save=["head"])
    train(model, trainer)
    return model, trainer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_trained_delta_serves_the_outputs_that_were_trained(
    quantizer: Any, dtype: torch.dtype, tmp_path: Path
) -> None:
    model, served = quantizer(Net(dtype)), quantizer(Net(dtype))
    before = answer(model)
    trainer = QuantizedTrainer(model, random_support(model, 0.05), modules_to_save=["head"])
    assert bit_equal(answer(model), before)
    train(model, trainer)
    tuned = answer(model)
    assert not torch.equal(tuned, before)
    trainer.export().save(tmp_path / "delta.safetensors")
    delta = SparseDelta.load(tmp_path / "delta.safetensors")
    assert {"up.weight", "down.weight"} == set(delta)
    assert delta["up.weight"].dtype == dtype
    assert delta.base.quantized == quantized_layers(model)["up.weight"].scheme
    prepared = delta.apply(served)
    assert bit_equal(answer(served), tuned)
    prepared.remove()
    assert bit_equal(answer(served), before)
    trainer.detach()
    model.head.load_state_dict(Net(dtype).head.state_dict())
    assert bit_equal(answer(model), before)


def test_the_gradients_are_those_of_a_dense_matrix_beside_the_layer(quantizer: Any) -> None:
    model = quantizer(Net())
    support = random_support(model, 0.05)
    trainer = QuantizedTrainer(model, support)
    values = dict(trainer.named_parameters())
    with torch.no_grad():
        for one in values.values():
            one.copy_(torch.randn(one.shape, generator=torch.Generator().manual_seed(1)) / 8)
    reference = quantizer(Net()).requires_grad_(False)
    dense = {name: torch.zeros(support.shapes[name]) for name in support}
    for name, one in values.items():
        dense[name].view(-1)[support[name].long()] = one.detach()
        dense[name].requires_grad_()
        layer = reference.get_submodule(name.rpartition(".")[0])
        layer.register_forward_hook(lambda _, args, output, name=name: output + args[0] @ dense[name].t())
    inputs, labels = batch()
    found, wanted = inputs.clone().requires_grad_(), inputs.clone().requires_grad_()
    for one, x in ((model, found), (reference, wanted)):
        nn.functional.cross_entropy(one(x).mean(1), labels).backward()
    torch.testing.assert_close(found.grad, wanted.grad)
    for name, one in values.items():
        gradient = dense[name].grad
        assert gradient is not None
        torch.testing.assert_close(one.grad, gradient.view(-1)[support[name].long()])


def test_training_goes_on_from_a_state(quantizer: Any) -> None:
    whole, _ = trained(quantizer)
    half, again = quantizer(Net()), quantizer(Net())
    trainers = [QuantizedTrainer(one, random_support(one, 0.05), modules_to_save=["head"]) for one in (half, again)]
    optimizer = train(half, trainers[0], range(2))
    trainers[1].load_state_dict(copy.deepcopy(trainers[0].state_dict()))
    again.head.load_state_dict(half.head.state_dict())
    resumed = torch.optim.SGD(trainers[1].parameters(), lr=0.5, momentum=0.9)
    resumed.load_state_dict(optimizer.state_dict())
    take(again, resumed, range(2, 3))
    assert bit_equal(answer(again), answer(whole))
    other = QuantizedTrainer(quantizer(Net()), Support.at({"up.weight": torch.tensor([3])}, {"up.weight": (128, 64)}))
    with pytest.raises(ConfigError) as caught:
        other.load_state_dict(trainers[0].state_dict())
    assert caught.value.parameter == "up.weight"


def float_delta(**settings: Any) -> SparseDelta:
    """Trained on the float base: linear layers, the norm, the head."""
    model = Net()
    config = RSTConfig(select="support", modules_to_save=["head"], **settings)
    trainer = ResidualSparseTrainer(model, config, support=Support.random(model, 0.05, config=config))
    optimizer = torch.optim.SGD(trainer.parameters(), lr=0.5)
    trainer.attach(optimizer)
    take(model, optimizer, range(3))
    return trainer.export()


def test_a_delta_of_the_float_base_is_served_beside_the_quantised_layers(quantizer: Any) -> None:
    delta, model = float_delta(), quantizer(Net())
    before = answer(model)
    dense = {name: torch.zeros(change.shape) for name, change in delta.items()}
    for name, change in delta.items():
        dense[name].view(-1)[change.indices.long()] = change.values
    reference = quantizer(Net())
    for name in ("up", "down"):
        addend = dense[f"{name}.weight"].t()
        reference.get_submodule(name).register_forward_hook(lambda _, args, out, addend=addend: out + args[0] @ addend)
    with torch.no_grad():
        for name in ("up.bias", "norm.weight", "norm.bias"):
            if name in dense:
                reference.get_parameter(name).add_(dense[name])
    reference.head.load_state_dict({key.removeprefix("head."): one for key, one in delta.dense.items()})
    with delta.prepare(model):
        torch.testing.assert_close(answer(model), answer(reference))
    assert bit_equal(answer(model), before)


def test_the_verbs_swap_on_a_quantised_base(quantizer: Any, tmp_path: Path) -> None:
    first, second = trained(quantizer)[1].export(), float_delta()
    model = RSTModel(quantizer(Net()))
    base = answer(model)
    model.add_adapter("first", first)
    on = answer(model)
    model.add_adapter("second", second)
    model.set_adapter("second")
    other = answer(model)
    assert len({tuple(one.flatten().tolist()) for one in (base, on, other)}) == 3
    with model.disable_adapter():
        assert bit_equal(answer(model), base)
    model.set_adapter("first")
    assert bit_equal(answer(model), on)
    model.save_pretrained(tmp_path, ["first"])
    again = RSTModel.from_pretrained(quantizer(Net()), tmp_path / "first")
    assert bit_equal(answer(again), on)
    assert again.get_delta().base.quantized == first.base.quantized
    with pytest.raises(ConfigError) as caught:
        model.merge_and_unload()
    assert caught.value.parameter == "up.weight"
    assert bit_equal(answer(model), on)
    assert bit_equal(answer(copy.deepcopy(model)), on)
    model.delete_adapter("first")
    assert bit_equal(answer(model), other)
    assert bit_equal(answer(model.unload()), base)


def test_a_batch_mixes_adapters_beside_quantised_layers(quantizer: Any) -> None:
    deltas = {"first": trained(quantizer)[1].export(), "second": float_delta()}
    model = quantizer(Net()).eval()
    inputs = batch()[0]
    alone = {"__base__": answer(model)}
    for name, delta in deltas.items():
        with delta.prepare(model):
            alone[name] = answer(model)
    names = ["second", "__base__", "first", "second", "first", "__base__"]
    found = mixed_forward(model, deltas, names, (inputs,))
    for row, name in enumerate(names):
        torch.testing.assert_close(found[row], alone[name][row], rtol=1e-4, atol=1e-5)
    assert bit_equal(answer(model), alone["__base__"])


def test_merging_into_the_float_base_adds_the_residuals_and_says_what_it_is_not(quantizer: Any) -> None:
    _, trainer = trained(quantizer)
    delta = trainer.export()
    base = {name: tensor.clone() for name, tensor in Net().state_dict().items()}
    with pytest.warns(RSTWarning) as told:
        merged = merge(base, delta)
    assert str(delta.base.quantized) in str(told[0].message)
    for name, change in delta.items():
        wanted = base[name].clone()
        wanted.view(-1)[change.indices.long()] += change.values
        assert bit_equal(merged[name], wanted)
    with pytest.warns(RSTWarning) as told:
        delta.prepare(Net())
    assert str(delta.base.quantized) in str(told[0].message)


def test_what_cannot_work_is_refused_by_name(quantizer: Any) -> None:
    model = quantizer(Net())
    support = random_support(model, 0.05)
    for patterns in (["up"], ["nothing"]):
        with pytest.raises(ConfigError) as caught:
            QuantizedTrainer(model, support, modules_to_save=patterns)
    with pytest.raises(ConfigError) as caught:
        QuantizedTrainer(model, Support.random_in({"head.weight": (3, 64)}, 0.5))
    assert caught.value.parameter == "head.weight"
    with pytest.raises(ParameterMismatchError) as unlike:
        QuantizedTrainer(model, Support.random_in({"up.weight": (64, 128)}, 0.5))
    assert unlike.value.parameter == "up.weight"
    with pytest.raises(ConfigError):
        QuantizedTrainer(Net(), support)
    tuned = {name: tensor + 0.5 for name, tensor in Net().state_dict().items()}
    delta = export(Net().state_dict(), tuned)
    absolute = convert(delta, op="replace", base=Net())
    for unfit in (absolute, export(Net().state_dict(), tuned, modules_to_save=["up"])):
        with pytest.raises(ParameterMismatchError) as unlike:
            unfit.prepare(model)
        assert unlike.value.parameter == "up.weight"
    handle = delta.apply(model)
    for other in (lambda: float_delta().apply(model), lambda: QuantizedTrainer(model, support)):
        with pytest.raises(WrongBaseError):
            other()
    handle.remove()
    QuantizedTrainer(model, support)


def test_only_linear_layers_that_are_quantised_count() -> None:
    assert quantized_layers(Net()) == {}
    with pytest.raises(ConfigError):
        random_support(Net(), 0.1)


def test_a_layer_that_waits_for_its_device_is_named() -> None:
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    model = nn.Sequential(bnb.nn.Linear4bit(64, 64))
    with pytest.raises(ConfigError) as caught:
        random_support(model, 0.1)
    assert caught.value.parameter == "0.weight"

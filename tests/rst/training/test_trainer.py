"""The trainer against a five-line reference loop, and in every setting a training script may put it in."""

import copy
import warnings
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import nn

from rst import ConfigError, Linear, NonFiniteError, ParameterMismatchError, ResidualSparseTrainer, RSTConfig, export
from rst.numerics.exactness import bit_equal

TAU = 2e-3
Optimizers = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=3e-3),
}


def small_model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int,
    after: Callable[[], None] = lambda: None,
    start: int = 0,
) -> None:
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        inputs, labels = torch.randn(16, 8, generator=generator), torch.randint(4, (16,), generator=generator)
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        after()


def assert_same(left: nn.Module, right: nn.Module) -> None:
    for (name, a), (_, b) in zip(left.state_dict().items(), right.state_dict().items(), strict=True):
        assert bit_equal(a, b), name


@pytest.mark.parametrize("optimizer", Optimizers)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_training_equals_the_reference_loop_bit_for_bit(optimizer: str, dtype: torch.dtype) -> None:
    model, reference = small_model().to(dtype), small_model().to(dtype)
    trainer = ResidualSparseTrainer(model, RSTConfig(threshold=TAU))
    stepped = Optimizers[optimizer](model.parameters())
    trainer.attach(stepped)

    origin = {name: parameter.detach().clone() for name, parameter in reference.named_parameters()}

    @torch.no_grad()
    def reset() -> None:
        for name, wt in reference.named_parameters():
            w0 = origin[name]
            wt.copy_(torch.where((wt - w0).abs() > TAU, wt, w0))

    def loop(trained: nn.Module, step: torch.optim.Optimizer, after: Callable[[], None]) -> None:
        for index in range(15):
            generator = torch.Generator().manual_seed(index)
            step.zero_grad()
            trained(torch.randn(16, 8, generator=generator).to(dtype)).square().mean().backward()
            step.step()
            after()

    loop(model, stepped, lambda: None)
    loop(reference, Optimizers[optimizer](reference.parameters()), reset)
    assert_same(model, reference)
    changed = sum(int((p != origin[n]).sum()) for n, p in reference.named_parameters())
    assert 0 < trainer.export().nnz == changed < sum(w.numel() for w in origin.values())


def test_the_exported_delta_is_what_a_comparison_of_checkpoints_gives() -> None:
    model, base = small_model(), small_model()
    trainer = ResidualSparseTrainer(model, RSTConfig(threshold=TAU, modules_to_save=["3"]))
    optimizer = Optimizers["sgd"](model.parameters())
    trainer.attach(optimizer)
    train(model, optimizer, 10)
    delta = trainer.export()
    assert delta.dense.keys() == {
        *("3.weight", "3.bias"),
        *("1.running_mean", "1.running_var", "1.num_batches_tracked"),
    }
    assert delta.buffers == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert delta.dsp() == delta.nnz + 16 * 4 + 4
    compared = export(base, model, modules_to_save=["3"])
    assert dict(compared) == dict(delta)
    delta.apply(base)
    assert_same(base, model)


def test_every_n_steps_and_once_at_export() -> None:
    model = small_model()
    trainer = ResidualSparseTrainer(model, RSTConfig(threshold=TAU, every=3))
    kept: list[int] = []
    optimizer = Optimizers["adamw"](model.parameters())
    trainer.attach(optimizer)

    def count() -> None:
        kept.append(sum(int((p != trainer.base[n]).sum()) for n, p in model.named_parameters()))

    train(model, optimizer, 6, count)
    total = sum(p.numel() for p in model.parameters())
    assert kept[0] == kept[1] == total
    assert kept[2] < total
    assert kept[5] < kept[4]

    once = small_model()
    trainer = ResidualSparseTrainer(once, RSTConfig(threshold=TAU, every=0))
    optimizer = Optimizers["adamw"](once.parameters())
    trainer.attach(optimizer)
    train(once, optimizer, 6)
    assert sum(int((p != trainer.base[n]).sum()) for n, p in once.named_parameters()) == total
    assert trainer.export().nnz < total


def test_a_schedule_follows_the_steps() -> None:
    model = small_model()
    config = RSTConfig(select="top", ratio=Linear(1.0, 0.1), total_steps=10)
    trainer = ResidualSparseTrainer(model, config)
    optimizer = Optimizers["adamw"](model.parameters())
    trainer.attach(optimizer)
    total = sum(p.numel() for p in model.parameters())
    train(model, optimizer, 5)
    assert trainer.count_changed() == round(0.55 * total)
    train(model, optimizer, 10)
    assert trainer.export().nnz == round(0.1 * total)


def test_bias_selection_lets_gradients_of_everything_through() -> None:
    model = small_model()
    trainer = ResidualSparseTrainer(model, RSTConfig(select="bias"))
    optimizer = Optimizers["sgd"](model.parameters())
    trainer.attach(optimizer)
    train(model, optimizer, 3, lambda: [None for p in model.parameters() if p.grad is None and pytest.fail("no grad")])
    assert trainer.export().keys() == {"0.bias", "1.bias", "3.bias"}


def test_resuming_continues_bit_for_bit(tmp_path: Any) -> None:
    def start(model: nn.Module) -> tuple[ResidualSparseTrainer, torch.optim.Optimizer, Any]:
        config = RSTConfig(threshold=Linear(1e-4, 5e-3), total_steps=20, modules_to_save=["3"])
        trainer = ResidualSparseTrainer(model, config)
        optimizer = Optimizers["sgd"](model.parameters())
        trainer.attach(optimizer)
        return trainer, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)

    whole = small_model()
    trainer, optimizer, scheduler = start(whole)
    train(whole, optimizer, 20, scheduler.step)
    wanted = trainer.export()

    first = small_model()
    trainer, optimizer, scheduler = start(first)
    train(first, optimizer, 8, scheduler.step)
    parts = {"model": first, "optimizer": optimizer, "scheduler": scheduler, "any name": trainer}
    torch.save({name: part.state_dict() for name, part in parts.items()}, tmp_path / "run.ckpt")

    saved = torch.load(tmp_path / "run.ckpt", weights_only=True)
    second = small_model()
    second.load_state_dict(saved["model"])  # so its w0 is wrong until the trainer's state is loaded
    trainer, optimizer, scheduler = start(second)
    for name, part in {"optimizer": optimizer, "scheduler": scheduler, "any name": trainer}.items():
        part.load_state_dict(saved[name])
    assert trainer.steps == 8
    train(second, optimizer, 12, scheduler.step, start=8)
    assert trainer.export() == wanted
    assert_same(second, whole)


def test_the_checkpoint_alone_suffices_for_an_export(tmp_path: Any) -> None:
    model = small_model()
    trainer = ResidualSparseTrainer(model, RSTConfig(threshold=TAU, modules_to_save=["3"], every=0))
    optimizer = Optimizers["sgd"](model.parameters())
    trainer.attach(optimizer)
    train(model, optimizer, 10)
    torch.save({"model": model.state_dict(), "rst": trainer.state_dict()}, tmp_path / "model.ckpt")
    exported = export(None, tmp_path / "model.ckpt")
    assert exported == trainer.export()
    assert export(None, tmp_path / "model.ckpt", threshold=0.0).nnz > exported.nnz


def test_gradient_accumulation_and_skipped_steps_of_a_scaler() -> None:
    model = small_model()
    trainer = ResidualSparseTrainer(model, RSTConfig(threshold=TAU))
    optimizer = Optimizers["sgd"](model.parameters())
    trainer.attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for micro in range(8):
        scaler.scale(model(torch.randn(16, 8)).square().mean()).backward()
        if micro % 4 == 3:
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    assert trainer.steps == 2
    before = copy.deepcopy(model)
    scaler.scale(model(torch.randn(16, 8)).square().mean() * float("inf")).backward()
    buffers = dict(before.named_buffers())
    scaler.step(optimizer)
    assert trainer.steps == 2
    for name, parameter in before.named_parameters():
        assert bit_equal(parameter, dict(model.named_parameters())[name])
    assert buffers


@pytest.mark.parametrize("storage", ["device", "sparse"])
def test_a_fused_optimizer_that_skips_inside_its_step_is_not_counted(storage: Literal["device", "sparse"]) -> None:
    model = small_model()
    trainer = ResidualSparseTrainer(model, RSTConfig(threshold=TAU, base_storage=storage))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    trainer.attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for factor in (1.0, float("inf"), 1.0):
        scaler.scale(model(torch.randn(16, 8)).square().mean() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert trainer.steps == 2
    assert trainer.count_changed() >= 0  # w0 is still known


@pytest.mark.parametrize("storage", ["device", "cpu", "mmap"])
def test_every_base_storage_gives_the_same_delta(storage: Any) -> None:
    model = small_model().to(torch.float64)
    model[3].weight = nn.Parameter(model[3].weight.detach().t().contiguous().t())  # memory order is not row-major
    before = copy.deepcopy(model)
    trainer = ResidualSparseTrainer(model, RSTConfig(threshold=TAU, base_storage=storage))
    optimizer = Optimizers["sgd"](model.parameters())
    trainer.attach(optimizer)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.ones(4, 8, dtype=torch.float64) * torch.arange(4)[:, None]).square().mean().backward()
        optimizer.step()
    delta = trainer.export()
    assert delta.nnz > 0
    delta.apply(before)
    assert_same(before, model)


class TestWrappedModels:
    def test_compiled_before_and_after(self) -> None:
        plain = small_model()
        trainer = ResidualSparseTrainer(plain, RSTConfig(threshold=TAU))
        optimizer = Optimizers["sgd"](plain.parameters())
        trainer.attach(optimizer)
        train(plain, optimizer, 3)
        wanted = trainer.export()

        inner = small_model()
        inner[0] = torch.compile(inner[0], backend="eager")
        compiled = torch.compile(inner, backend="eager")
        trainer = ResidualSparseTrainer(compiled, RSTConfig(threshold=TAU))
        optimizer = Optimizers["sgd"](compiled.parameters())
        trainer.attach(optimizer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's own
            train(compiled, optimizer, 3)
        delta = trainer.export()
        assert delta == wanted
        assert not any("_orig_mod" in name for name in (*delta, *delta.dense))
        fresh = torch.compile(small_model(), backend="eager")
        delta.apply(fresh)
        assert_same(fresh._orig_mod, plain)

    def test_data_parallel(self) -> None:
        wrapped = nn.DataParallel(small_model())
        trainer = ResidualSparseTrainer(wrapped, RSTConfig(threshold=TAU))
        optimizer = Optimizers["sgd"](wrapped.parameters())
        trainer.attach(optimizer)
        train(wrapped, optimizer, 3)
        assert trainer.export().keys() <= dict(small_model().named_parameters()).keys()

    def test_accelerate(self) -> None:
        accelerate = pytest.importorskip("accelerate")
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        model = small_model()
        trainer = ResidualSparseTrainer(model, RSTConfig(threshold=TAU))
        model, optimizer = accelerator.prepare(model, Optimizers["sgd"](model.parameters()))
        trainer.attach(optimizer)
        for _ in range(6):
            with accelerator.accumulate(model):
                accelerator.backward(model(torch.randn(16, 8)).square().mean())
                optimizer.step()
                optimizer.zero_grad()
        assert trainer.steps == 3
        assert trainer.export().nnz > 0


class TestWhatIsTracked:
    def test_tied_weights_count_once_and_reach_both_names(self) -> None:
        class Tied(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.embed = nn.Embedding(10, 4)
                self.out = nn.Linear(4, 10, bias=False)
                self.out.weight = self.embed.weight

        model, base = Tied(), Tied()
        base.load_state_dict(model.state_dict())
        trainer = ResidualSparseTrainer(model, RSTConfig(threshold=0.0))
        with torch.no_grad():
            model.out.weight[3, 2] += 1
        delta = trainer.export()
        assert delta.nnz == 1
        assert delta.tied == {"out.weight": "embed.weight"}
        delta.apply(base)
        assert torch.equal(base.out.weight, model.embed.weight)

    def test_untargeted_parameters_are_frozen(self) -> None:
        model = small_model()
        trainer = ResidualSparseTrainer(model, RSTConfig(target_modules=["0"], exclude_modules=["0.bias"]))
        assert trainer.base.keys() == {"0.weight"}
        assert [name for name, p in model.named_parameters() if p.requires_grad] == ["0.weight"]

    def test_regular_expressions_match_whole_names(self) -> None:
        trainer = ResidualSparseTrainer(small_model(), RSTConfig(target_modules=r"[03]\.weight"))
        assert trainer.base.keys() == {"0.weight", "3.weight"}

    def test_empty_and_scalar_parameters(self) -> None:
        model = nn.Module()
        model.scale, model.empty = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.empty(0, 3))
        base = copy.deepcopy(model)
        trainer = ResidualSparseTrainer(model, RSTConfig(threshold=0.1))
        with torch.no_grad():
            model.scale += 1
        delta = trainer.export()
        assert delta.keys() == {"scale"}
        delta.apply(base)
        assert base.scale.item() == 2.0

    def test_a_non_persistent_buffer_is_nobodys_business(self) -> None:
        model = small_model()
        model.register_buffer("cache", torch.zeros(3), persistent=False)
        trainer = ResidualSparseTrainer(model)
        model.cache += 1
        assert "cache" not in trainer.export().dense

    def test_buffers_replaced_by_a_device_or_dtype_move_are_still_found(self) -> None:
        model = small_model()
        trainer = ResidualSparseTrainer(model)
        model[1]._buffers["running_mean"] = torch.ones(16)
        assert trainer.export().dense.keys() == {"1.running_mean"}


class TestRefusals:
    def test_nan_is_named_at_export(self) -> None:
        model = small_model()
        trainer = ResidualSparseTrainer(model, RSTConfig(threshold=0.1))
        with torch.no_grad():
            model[3].weight[1, 2] = float("nan")
        with pytest.raises(NonFiniteError, match=r"\b1 of 64\b") as caught:
            trainer.export()
        assert caught.value.parameter == "3.weight"

    def test_nan_is_named_by_top_selection(self) -> None:
        model = small_model()
        trainer = ResidualSparseTrainer(model, RSTConfig(select="top", ratio=0.5))
        with torch.no_grad():
            model[3].bias[0] = float("nan")
        with pytest.raises(NonFiniteError) as caught:
            trainer.select()
        assert caught.value.parameter == "3.bias"

    def test_complex_parameters_are_refused_by_name(self) -> None:
        model = nn.Module()
        model.phase = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
        with pytest.raises(ParameterMismatchError, match="complex64") as caught:
            ResidualSparseTrainer(model)
        assert caught.value.parameter == "phase"

    def test_a_dtype_change_is_refused_by_name(self) -> None:
        model = small_model()
        trainer = ResidualSparseTrainer(model)
        model.half()
        with pytest.raises(ParameterMismatchError, match="float16.*float32") as caught:
            trainer.select()
        assert caught.value.parameter == "0.weight"

    def test_an_optimizer_of_another_model(self) -> None:
        trainer = ResidualSparseTrainer(small_model())
        with pytest.raises(ConfigError, match=r"\b6\b"):
            trainer.attach(Optimizers["sgd"](small_model().parameters()))

    def test_attaching_twice_and_again_after_detach(self) -> None:
        model = small_model()
        trainer = ResidualSparseTrainer(model)
        optimizer = Optimizers["sgd"](model.parameters())
        trainer.attach(optimizer)
        with pytest.raises(ConfigError):
            trainer.attach(optimizer)
        trainer.detach()
        train(model, optimizer, 1)
        assert trainer.steps == 0
        trainer.attach(optimizer)
        train(model, optimizer, 1)
        assert trainer.steps == 1

    def test_a_frozen_parameter_made_trainable_would_be_lost(self) -> None:
        model = small_model()
        trainer = ResidualSparseTrainer(model, RSTConfig(target_modules=["0"]))
        model[3].weight.requires_grad_(True)
        with pytest.raises(ConfigError) as caught:
            trainer.export()
        assert caught.value.parameter == "3.weight"

    def test_a_replaced_parameter_is_noticed(self) -> None:
        model = small_model()
        trainer = ResidualSparseTrainer(model)
        model[0].weight = nn.Parameter(torch.zeros(16, 8))
        with pytest.raises(ConfigError) as caught:
            trainer.export()
        assert caught.value.parameter == "0.weight"

    def test_a_state_of_another_model(self) -> None:
        trainer = ResidualSparseTrainer(small_model())
        state = ResidualSparseTrainer(nn.Linear(2, 2)).state_dict()
        with pytest.raises(ConfigError, match=r"\b11\b"):
            trainer.load_state_dict(state)
        with pytest.raises(ConfigError, match="rst-trainer"):
            trainer.load_state_dict({"steps": 3})

    def test_a_state_of_other_shapes_changes_nothing(self) -> None:
        trainer = ResidualSparseTrainer(nn.Linear(2, 2))
        before = {name: weight.clone() for name, weight in trainer.base.items()}
        other = ResidualSparseTrainer(nn.Linear(3, 2)).state_dict()
        with pytest.raises(ParameterMismatchError) as caught:
            trainer.load_state_dict(other)
        assert caught.value.parameter == "weight"
        assert all(torch.equal(trainer.base[name], weight) for name, weight in before.items())

    def test_a_typo_in_a_pattern_suggests_names(self) -> None:
        model = nn.Sequential()
        model.add_module("encoder", nn.Linear(2, 2))
        with pytest.raises(ConfigError, match="target_modules.*encodr.*encoder"):
            ResidualSparseTrainer(model, RSTConfig(target_modules=["encodr"]))

    def test_nothing_to_train(self) -> None:
        model = small_model().requires_grad_(False)
        with pytest.raises(ConfigError):
            ResidualSparseTrainer(model)

    def test_a_state_that_is_none(self) -> None:
        trainer = ResidualSparseTrainer(small_model())
        with pytest.raises(ConfigError, match="list"):
            trainer.load_state_dict([trainer.state_dict()])  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="base"):
            trainer.load_state_dict({**trainer.state_dict(), "base": {"0.weight": 3}})

    def test_a_model_without_values(self) -> None:
        with pytest.raises(ParameterMismatchError, match="float32.*meta") as caught:
            ResidualSparseTrainer(small_model().to("meta"))
        assert caught.value.parameter == "0.weight"

    def test_the_base_storage_of_the_trainer_is_a_mapping(self) -> None:
        base = ResidualSparseTrainer(small_model()).base
        assert len(base) == len(list(base)) > 0

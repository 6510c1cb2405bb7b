"""`base_storage="sparse"`: the copy of w0 lies where the gradients were, and nothing else changes, bit by bit."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rst import Constant, ResidualSparseTrainer, RSTConfig
from rst.training import copies_in_gradients
from tests.rst.training.test_trainer import TAU, assert_same, small_model, train

Build = Callable[[Iterable[Tensor]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Build] = {
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "Adam": lambda p: torch.optim.Adam(p, lr=3e-3, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=3e-3),
    "AdamW, foreach": lambda p: torch.optim.AdamW(p, lr=3e-3, foreach=True),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, lr=3e-3, fused=True),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=3e-3),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=3e-2),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=3e-3),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=3e-3),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, centered=True),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=1e-3),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True),
}
if hasattr(torch.optim, "Muon"):
    OPTIMIZERS["Muon"] = lambda p: torch.optim.Muon([weight for weight in p if weight.ndim == 2], lr=3e-3)

FEW: Any = {"ratio": Constant(0.05), "total_steps": 10}


@pytest.fixture(autouse=True)
def parts_of_one_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies_in_gradients, "_PART", 1)


def twins(build: Build, **settings: Any) -> tuple[nn.Module, nn.Module, ResidualSparseTrainer, torch.optim.Optimizer]:
    """Return a model trained with copies of w0, its twin before training, the twin's trainer and optimiser."""
    models = small_model(), small_model()
    trainers = [
        ResidualSparseTrainer(model, RSTConfig(base_storage=storage, **settings))
        for model, storage in zip(models, ("device", "sparse"), strict=True)
    ]
    optimizers = [build(model.parameters()) for model in models]
    for trainer, optimizer in zip(trainers, optimizers, strict=True):
        trainer.attach(optimizer)
    train(models[0], optimizers[0], 6)
    return *models, trainers[1], optimizers[1]


def clip_all(optimizer: torch.optim.Optimizer) -> None:
    nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 0.01)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimiser_of_torch_gives_the_bits_of_a_copy_kept(name: str) -> None:
    copied, model, _, optimizer = twins(OPTIMIZERS[name], **FEW)
    train(model, optimizer, 6)
    assert_same(copied, model)
    assert any(weight.grad is None for weight in model.parameters())  # where a copy was needed


@pytest.mark.parametrize(
    "settings",
    [
        FEW,
        {"ratio": 0.05, "total_steps": 6},
        {"threshold": TAU, "every": 4},
        {"select": "bias"},
        {"threshold": TAU, "modules_to_save": ["3"]},
        {"threshold": 0.0},
    ],
)
def test_every_selection_gives_the_bits_of_a_copy_kept(settings: dict[str, Any]) -> None:
    copied, model, trainer, optimizer = twins(OPTIMIZERS["AdamW"], **settings)
    train(model, optimizer, 6)
    assert_same(copied, model)
    assert trainer.export().nnz


def test_groups_keep_their_rates_and_parameters_and_the_state_its_format() -> None:
    def build(weights: Iterable[Tensor]) -> torch.optim.Optimizer:
        first, *others = weights
        return torch.optim.AdamW([{"params": [first], "lr": 1e-2}, {"params": others, "weight_decay": 0.1}], lr=3e-3)

    copied, model, _, optimizer = twins(build, threshold=TAU)
    train(model, optimizer, 6)
    assert_same(copied, model)
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 5]
    assert sorted(optimizer.state_dict()["state"]) == list(range(6))


@pytest.mark.parametrize("case", ["closure", "hook", "view", "buffer", "held", "alone", "LBFGS", "device"])
def test_gradients_that_are_not_the_steps_alone_stay(case: str) -> None:
    """A closure makes them inside the step; hooks, flat buffers and optimisers of all parameters at once need them."""
    model = nn.Linear(4, 4, bias=False)
    twin = nn.Linear(4, 4, bias=False)
    twin.load_state_dict(model.state_dict())
    trainer = ResidualSparseTrainer(
        model, RSTConfig(threshold=0.0, base_storage="device" if case == "device" else "sparse")
    )
    build: Any = torch.optim.LBFGS if case == "LBFGS" else torch.optim.SGD
    optimizer, plain = (build(one.parameters(), lr=0.1) for one in (model, twin))
    trainer.attach(optimizer)
    if case == "hook":
        for step in (optimizer, plain):
            step.register_step_pre_hook(lambda one, *_: clip_all(one))
    held: list[Tensor | None] = []
    for one, step in ((model, optimizer), (twin, plain)):
        memory = torch.ones(2, 4, 4) if case == "view" else torch.ones(1, 4, 4)
        one.weight.grad = memory[0] if case in ("view", "buffer") else torch.ones(4, 4)
        held.append(one.weight.grad if case == "held" else memory if case in ("view", "buffer") else None)
        del memory
        if case in ("closure", "LBFGS"):
            step.step(lambda one=one: one.weight.square().sum())
        else:
            step.step()
    assert_same(model, twin)
    kept = model.weight.grad
    assert (kept is None) == (case == "alone")  # an ordinary gradient: the others differ by their case alone
    if kept is not None:
        assert torch.equal(kept, twin.weight.grad)


def test_a_gradient_that_two_parameters_have_is_not_written_to() -> None:
    model, twin = (nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)) for _ in range(2))
    twin.load_state_dict(model.state_dict())
    trainer = ResidualSparseTrainer(model, RSTConfig(threshold=0.0, base_storage="sparse"))
    optimizer, plain = (torch.optim.SGD(one.parameters(), lr=0.1) for one in (model, twin))
    trainer.attach(optimizer)
    for one, step in ((model, optimizer), (twin, plain)):
        one[0].weight.grad = one[1].weight.grad = torch.ones(4, 4)
        step.step()
    assert_same(model, twin)


@pytest.mark.parametrize("every", [1, 2])
def test_buckets_of_distributed_data_parallel_do_not_become_w0(every: int, tmp_path: Path) -> None:
    """A bucket of one parameter is as large as its gradient, and is written to by later backward passes."""
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        weights = []
        for storage in ("device", "sparse"):
            torch.manual_seed(0)
            model = nn.Linear(16, 16, bias=False)
            trainer = ResidualSparseTrainer(
                model,
                RSTConfig(threshold=0.02, every=every, base_storage=storage),  # type: ignore[arg-type]
            )
            wrapped = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            trainer.attach(optimizer)
            for _ in range(4):
                optimizer.zero_grad()
                wrapped(torch.randn(4, 16)).square().mean().backward()
                optimizer.step()
            weights += [torch.stack([model.weight.detach(), trainer.base["weight"]])]
    finally:
        torch.distributed.destroy_process_group()
    assert torch.equal(*weights)


def test_a_step_that_fails_half_way_loses_no_w0() -> None:
    model, before = small_model(), small_model()
    trainer = ResidualSparseTrainer(model, RSTConfig(threshold=TAU, base_storage="sparse"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    trainer.attach(optimizer)
    train(model, optimizer, 2)
    model(torch.randn(16, 8)).square().mean().backward()
    optimizer.state[model[3].weight]["momentum_buffer"] = "broken"
    with pytest.raises((TypeError, AttributeError)):
        optimizer.step()
    for name, weight in before.named_parameters():
        assert torch.equal(trainer.base[name], weight)
    assert [len(group["params"]) for group in optimizer.param_groups] == [6]


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips(fused: bool) -> None:
    model = nn.Linear(4, 4)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    trainer = ResidualSparseTrainer(model, RSTConfig(threshold=0.0, base_storage="sparse"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
    trainer.attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for factor, moved in ((float("inf"), False), (1.0, True)):
        optimizer.zero_grad()
        scaler.scale(model(torch.ones(2, 4)).sum() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        assert trainer.steps == int(moved)
        assert torch.equal(model.weight, before["weight"]) != moved


def test_accelerates_wrapper_is_no_obstacle() -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    _, model, trainer, _ = twins(OPTIMIZERS["AdamW"], **FEW)
    trainer.detach()
    prepared, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=3e-3))
    trainer.attach(optimizer)
    for step in range(12):
        generator = torch.Generator().manual_seed(step // 2)
        inputs, labels = torch.randn(16, 8, generator=generator), torch.randint(4, (16,), generator=generator)
        with accelerator.accumulate(prepared):
            accelerator.backward(nn.functional.cross_entropy(prepared(inputs), labels))
            optimizer.step()
            assert any(weight.grad is None for weight in model.parameters()) == (step % 2 == 1)
            optimizer.zero_grad()
    assert trainer.steps == 6

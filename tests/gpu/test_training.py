"""The trainer on a device, with what people train with there: what is left is w0, or moved by more than tau."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rst import Constant, ResidualSparseTrainer, RSTConfig, export, merge
from rst.numerics.exactness import bit_equal

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]
TAU = 1e-3
THRESHOLD = RSTConfig(threshold=TAU, base_storage="device")


def network(device: torch.device) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 31), nn.GELU(), nn.LayerNorm(31), nn.Linear(31, 8)).to(device)


def batches(device: torch.device, steps: int = 4) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        yield torch.randn(16, 24, generator=generator).to(device)


def check(model: nn.Module, trainer: ResidualSparseTrainer) -> None:
    """Every weight is w0 or moved by more than tau, some of each; base plus delta is the model, bit for bit."""
    base = {name: tensor.detach().cpu().clone() for name, tensor in trainer.base.items()}
    tuned = {name: tensor.detach().cpu() for name, tensor in model.named_parameters()}
    moved = kept = 0
    for name, origin in base.items():
        changed = tuned[name].view(torch.int32) != origin.view(torch.int32)
        assert ((tuned[name] - origin).abs()[changed] > TAU).all()
        moved, kept = moved + int(changed.sum()), kept + int((~changed).sum())
    assert moved
    assert kept
    merged = merge(base, trainer.export())
    assert all(bit_equal(merged[name], tuned[name]) for name in base)


def train(
    model: nn.Module, trainer: ResidualSparseTrainer, device: torch.device, step: Callable[[Tensor], object]
) -> None:
    for batch in batches(device):
        step(batch)
    assert trainer.steps == 4
    check(model, trainer)


def plain(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[Tensor], None]:
    def step(batch: Tensor) -> None:
        optimizer.zero_grad()
        model(batch).float().square().mean().backward()
        optimizer.step()

    return step


@pytest.mark.parametrize("storage", ["device", "cpu", "mmap", "sparse"])
def test_w0_in_any_place(device: torch.device, storage: str) -> None:
    model = network(device)
    trainer = ResidualSparseTrainer(model, RSTConfig(threshold=TAU, base_storage=storage))  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    trainer.attach(optimizer)
    train(model, trainer, device, plain(model, optimizer))
    assert trainer.status().kept == trainer.count_changed()


def test_in_backward(device: torch.device) -> None:
    model = network(device)
    trainer = ResidualSparseTrainer(model, THRESHOLD)
    optimizer = trainer.attach_in_backward(lambda parameters: torch.optim.SGD(parameters, lr=1e-2))
    train(model, trainer, device, plain(model, optimizer))


def test_autocast_to_bfloat16(device: torch.device) -> None:
    model = network(device)
    trainer = ResidualSparseTrainer(model, THRESHOLD)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    trainer.attach(optimizer)
    step = plain(model, optimizer)
    with torch.autocast(device.type, torch.bfloat16):
        train(model, trainer, device, step)


def test_a_step_that_the_scaler_skips_is_not_counted(device: torch.device) -> None:
    model = network(device)
    trainer = ResidualSparseTrainer(model, THRESHOLD)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    trainer.attach(optimizer)
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0)
    for number, batch in enumerate(batches(device)):
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.float16):
            loss = model(batch).float().square().mean()
        scaler.scale(loss * (float("inf") if number == 1 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert trainer.steps == 3
    check(model, trainer)


def test_a_compiled_model(gpu: torch.device) -> None:
    model = network(gpu)
    compiled = torch.compile(model)
    trainer = ResidualSparseTrainer(compiled, THRESHOLD)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    trainer.attach(optimizer)
    train(model, trainer, gpu, plain(compiled, optimizer))


def test_a_captured_step(gpu: torch.device) -> None:
    """The projection is captured with the step; its hook counts at the capture alone."""
    model = network(gpu)
    trainer = ResidualSparseTrainer(model, THRESHOLD)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    trainer.attach(optimizer)
    step, static = plain(model, optimizer), torch.empty(16, 24, device=gpu)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for batch in batches(gpu, 3):  # tables are made, kernels compiled
            static.copy_(batch)
            step(static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(static)
    for batch in batches(gpu, 5):
        static.copy_(batch)
        graph.replay()
    torch.cuda.synchronize()
    check(model, trainer)


def test_ddp_on_one_device(device: torch.device, tmp_path: Path) -> None:
    backend = "nccl" if device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = network(device)
        parallel = nn.parallel.DistributedDataParallel(model)
        trainer = ResidualSparseTrainer(parallel, THRESHOLD)
        optimizer = torch.optim.SGD(parallel.parameters(), lr=1e-2)
        trainer.attach(optimizer)
        train(model, trainer, device, plain(parallel, optimizer))
    finally:
        torch.distributed.destroy_process_group()


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "config",
    [
        THRESHOLD,
        RSTConfig(threshold=TAU, base_storage="cpu"),
        RSTConfig(ratio=Constant(0.1), total_steps=9, base_storage="device"),
    ],
    ids=["threshold", "w0 on the host", "share"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_host_waits_for_nothing_in_a_step(gpu: torch.device, config: RSTConfig, dtype: torch.dtype) -> None:
    model = network(gpu).to(dtype)
    trainer = ResidualSparseTrainer(model, config)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-1)
    trainer.attach(optimizer)
    step = plain(model, optimizer)
    for number, batch in enumerate(batches(gpu)):
        if number:  # the first compiles
            with no_waiting():
                step(batch.to(dtype))
        else:
            step(batch.to(dtype))
    assert trainer.steps == 4


def test_a_share_is_kept_and_exported(device: torch.device) -> None:
    model = network(device)
    before = {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}
    trainer = ResidualSparseTrainer(model, RSTConfig(ratio=Constant(0.05), total_steps=4, base_storage="device"))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    trainer.attach(optimizer)
    for batch in batches(device):
        plain(model, optimizer)(batch)
    delta = trainer.export()
    assert delta.nnz == round(0.05 * sum(weight.numel() for weight in model.parameters()))
    assert export(before, model).nnz == delta.nnz

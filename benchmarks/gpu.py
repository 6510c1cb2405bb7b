"""The kernels on a GPU: projection against a copy, its share of a step, swaps, mixed batches, a published step.

Part of `make gpu`. With --quick it is a rehearsal: tiny tensors, by Triton's interpreter where TRITON_INTERPRET=1.
"""

import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import vit_b_16
from benchmarks.record import RESULTS, Row, write
from benchmarks.swap_bank import on_and_off
from rst import Constant, ParameterDelta, ResidualSparseTrainer, RSTConfig, SparseDelta, mixed_forward
from rst.errors import RSTWarning
from rst.numerics import kernels
from rst.sync import Publisher
from rst.training.projection import choose_projection
from rst.training.projection_eager import project_eager

TAU, _DENSITY = 1e-6, 1e-3
_MILLION = 10**6


def run(quick: bool, folder: Path = RESULTS) -> Path:
    """Measure, on the GPU if there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if os.environ.get("TRITON_INTERPRET") == "1":
        kernels.run_on = lambda device: True  # type: ignore[assignment]
    torch.manual_seed(0)
    rows: list[Row] = []
    for part in (_projections, _training_step, _swaps, _mixed_batches, _publish):
        started = time.perf_counter()
        rows += part(device, quick)
        print(f"{part.__name__.strip('_')}: {time.perf_counter() - started:.1f} s", flush=True)
    notes = [
        "Share of a copy: bytes a second that the projection moves (two streams read, one written) over those of "
        "`Tensor.copy_` on as many bytes (one read, one written), medians of one run.",
        "On and off are two swaps. LoRA: PEFT's merge_adapter and unmerge_adapter, r=4, on the 48 linear layers.",
        "The step: forward, backward and AdamW under autocast to bfloat16, 64 images.",
    ]
    title = f"On a GPU: {torch.cuda.get_device_name()}" if device.type == "cuda" else "Rehearsal without a GPU"
    return write("gpu", title, rows, notes, folder=folder)


def _projections(device: torch.device, quick: bool) -> Iterator[Row]:
    sizes = {"tiny": 3000} if quick else {"86 M": 86 * _MILLION, "1 B": 1000 * _MILLION, "7 B": 7000 * _MILLION}
    for name, count in sizes.items():
        for dtype in (torch.float32, torch.bfloat16):
            needed = 2.2 * count * dtype.itemsize
            if device.type == "cuda" and torch.cuda.mem_get_info()[0] < needed:
                yield Row(f"projection, {name} {dtype}", {"note": f"needs {needed / 2**30:.0f} GiB"})
                continue
            yield _projection(f"{name} {str(dtype).removeprefix('torch.')}", count, dtype, device, quick)


def _projection(name: str, count: int, dtype: torch.dtype, device: torch.device, quick: bool) -> Row:
    tensors = 5 if quick else 150
    pairs = [_pair(count // tensors, dtype, device) for _ in range(tensors)]
    project = choose_projection([weight for weight, _ in pairs])
    taken = _median(lambda: project(pairs, TAU), device, quick)
    eager = _median(lambda: project_eager(pairs, TAU), device, quick)
    copied = _median(lambda: _copy(pairs), device, quick)
    numbers = {"milliseconds": taken, "share of a copy": f"{1.5 * copied / taken:.1%}", "eager, milliseconds": eager}
    return Row(f"projection, {name} in {tensors} tensors", numbers)


def _pair(count: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    origin = torch.randn(count, dtype=dtype, device=device) * 0.02
    moved = torch.rand(count, dtype=dtype, device=device) < _DENSITY
    return torch.where(moved, origin + 1e-3, origin), origin


def _copy(pairs: list[tuple[Tensor, Tensor]]) -> None:
    """As many bytes as the weights have, one read and one written."""
    for weight, origin in pairs:
        weight.copy_(origin)


def _training_step(device: torch.device, quick: bool) -> Iterator[Row]:
    model, images = _vision_model(device, quick)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    warnings.simplefilter("ignore", RSTWarning)  # three trainers of one model
    trainers = {
        "a threshold": ResidualSparseTrainer(model, RSTConfig(threshold=TAU, base_storage="device")),
        "a threshold, w0 in CPU memory": ResidualSparseTrainer(model, RSTConfig(threshold=TAU, base_storage="cpu")),
        "a share": ResidualSparseTrainer(model, RSTConfig(ratio=Constant(1e-3), total_steps=9, base_storage="device")),
    }

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(images).float().square().sum()
        loss.backward()
        optimizer.step()

    whole = _median(step, device, quick)
    yield Row("a training step of ViT-B/16", {"milliseconds": whole})
    for what, trainer in trainers.items():
        taken = _median(lambda: trainer.select(final=False), device, quick)  # noqa: B023
        yield Row(f"selection in it, {what}", {"milliseconds": taken, "share of the step": f"{taken / whole:.2%}"})


def _vision_model(device: torch.device, quick: bool) -> tuple[nn.Module, Tensor]:
    from open_clip.transformer import VisionTransformer

    pixels, width, layers, heads, batch = (32, 24, 1, 2, 2) if quick else (224, 768, 12, 12, 64)
    model = VisionTransformer(pixels, 16, width, layers, heads, 4.0, output_dim=2 * width // 3).to(device)
    return model, torch.randn(batch, 3, pixels, pixels, device=device)


def _swaps(device: torch.device, quick: bool) -> Iterator[Row]:
    from benchmarks.swap_peft import merge_and_unmerge

    base = {
        name: tensor.to(device)
        for name, tensor in vit_b_16.weights().items()
        if not quick or name.endswith(".0.ln_1.bias")
    }
    live = vit_b_16.module(base)
    prepared = _delta(live, 1).prepare(live)
    yield Row(
        f"swap, {len(base)} tensors: on and off",
        {"milliseconds": _median(lambda: on_and_off(prepared), device, quick)},
    )
    layers = base if not quick else {"resblocks": torch.randn(8, 8, device=device)}
    lora = merge_and_unmerge("LoRA", layers)
    yield Row("LoRA: merge and unmerge", {"milliseconds": _median(lora, device, quick)})


def _mixed_batches(device: torch.device, quick: bool) -> Iterator[Row]:
    model, images = _vision_model(device, quick)
    model.eval()
    with torch.no_grad():
        yield Row(
            f"a batch of {len(images)}, the base alone", {"milliseconds": _median(lambda: model(images), device, quick)}
        )
        for count in (1, 2) if quick else (1, 8, 64):
            deltas = {f"task{seed}": _delta(model, seed) for seed in range(count)}
            names = [f"task{sample % count}" for sample in range(len(images))]
            taken = _median(lambda: mixed_forward(model, deltas, names, (images,)), device, quick)  # noqa: B023
            yield Row(f"the batch with {count} adapters in it", {"milliseconds": taken})


def _publish(device: torch.device, quick: bool) -> Iterator[Row]:
    model, _ = _vision_model(device, quick)
    with tempfile.TemporaryDirectory() as folder:
        publisher = Publisher(model, folder, anchor_every=10**6)

        def step() -> None:
            with torch.no_grad():
                for weight in model.parameters():
                    weight.view(-1)[:: round(1 / _DENSITY)] += 1e-3
            publisher.publish()

        yield Row("one published step, 0.1 % changed", {"milliseconds": _median(step, device, quick)})


def _delta(model: nn.Module, seed: int) -> SparseDelta:
    """A change of 0.1 % of every parameter, by about its own size."""
    generator = torch.Generator().manual_seed(seed)
    changes = {}
    for name, parameter in model.named_parameters():
        wanted = max(1, round(_DENSITY * parameter.numel()))
        positions = torch.randint(parameter.numel(), (wanted,), generator=generator).unique()
        old = parameter.detach().reshape(-1)[positions.to(parameter.device)].cpu()
        new = old + 0.05 * torch.randn(positions.numel(), generator=generator)
        changes[name] = ParameterDelta.at(positions, old, new, parameter.shape, None)
    return SparseDelta(changes)


def _median(work: Callable[[], object], device: torch.device, quick: bool) -> float:
    """Milliseconds of the median round, by the device's own clock."""
    taken = []
    for number in range(2 if quick else 23):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            end.record()
            end.synchronize()
            milliseconds = start.elapsed_time(end)
        else:
            started = time.perf_counter()
            work()
            milliseconds = (time.perf_counter() - started) * 1e3
        if number >= (1 if quick else 3):  # the first ones compile
            taken.append(milliseconds)
    return round(sorted(taken)[len(taken) // 2], 3)

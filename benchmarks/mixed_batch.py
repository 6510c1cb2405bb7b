"""One batch of 1 to 256 adapters on ViT-B/16's layers, against a swap per group and PEFT's LoRA in one forward."""

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import mixed_batch_peft
from benchmarks.plots import curves
from benchmarks.record import RESULTS, Row, write
from benchmarks.timing import race
from rst import ParameterDelta, SparseDelta, mixed_forward

_DENSITY, _LAYERS, _PIXELS = 1e-3, 2, 48
_BASE, _MIXED, _SWAP, _PEFT = "base alone", "rst: mixed batch", "rst: a swap a group", "PEFT LoRA r=4: mixed batch"
_SAME = "rst: mixed batch, LoRA's layers"


def run(quick: bool, folder: Path = RESULTS) -> Path:
    """Measure, and check that the mixed batch gives what the swaps give."""
    from open_clip.transformer import VisionTransformer

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = VisionTransformer(_PIXELS, 16, 768, 1 if quick else _LAYERS, 12, 4.0, output_dim=512).to(device).eval()
    counts = (1, 4) if quick else (1, 4, 16, 64, 256)
    size = 8 if quick else 256
    images = torch.randn(size, 3, _PIXELS, _PIXELS, device=device)
    deltas = {f"task{seed}": _delta(model, seed) for seed in range(counts[-1])}
    lora = mixed_batch_peft.model(model, [*deltas])
    in_its_layers = {
        name: SparseDelta({key: delta[key] for key in delta if key.endswith(mixed_batch_peft.WEIGHTS)})
        for name, delta in deltas.items()
    }
    other = copy.deepcopy(model)  # a model keeps the joint index of its latest batch
    rows = []
    for count in counts:
        names = [f"task{sample % count}" for sample in range(size)]
        contenders = {
            _BASE: lambda: model(images),
            _MIXED: lambda names=names: mixed_forward(model, deltas, names, (images,)),
            _SWAP: _swaps(model, deltas, names, images),
            _SAME: lambda names=names: mixed_forward(other, in_its_layers, names, (images,)),
            _PEFT: lambda names=names: lora(images, adapter_names=names),
        }
        with torch.no_grad():
            _check(*(contenders[name]() for name in (_MIXED, _SWAP, _BASE)))
            timings = race({name: _waiting(run, device) for name, run in contenders.items()}, rounds=1 if quick else 9)
        milliseconds = {name: round(timing.median * 1e3, 1) for name, timing in timings.items()}
        rows.append(Row(f"{count} adapters", {"adapters": count, **milliseconds}))
    weights = sum(parameter.numel() for parameter in model.parameters())
    title = f"Milliseconds for one batch of {size} samples, by the number of different adapters in it, on {device.type}"
    notes = [
        f"open_clip's image encoder in the layer sizes of ViT-B/16, with {len(model.transformer.resblocks)} of its 12 "
        f"blocks and {_PIXELS} x {_PIXELS} pixels ({len(model.positional_embedding)} tokens): {weights:,} float32 "
        f"weights, {_DENSITY:.1%} of every tensor changed by each adapter. Everything is prepared and in memory.",
        "Base alone: one forward without adapters, the floor of a mixed batch. A swap a group: each adapter on, its "
        "samples through the model, off again.",
        "PEFT's LoRA is on the MLPs' linear layers only, two thirds of the weights: its attention takes no "
        f'adapter_names. The deltas change all tensors; in the column "{_SAME}", those that it changes.',
    ]
    curves(
        rows, "adapters", [("milliseconds", (_BASE, _MIXED, _SAME, _SWAP, _PEFT))], title, folder / "mixed_batch.png"
    )
    return write("mixed_batch", title, rows, notes, folder=folder)


def _delta(model: nn.Module, seed: int) -> SparseDelta:
    """A change of `_DENSITY` of every parameter, by about its own size, drawn without a tuned copy of the model."""
    generator = torch.Generator().manual_seed(seed)
    changes = {}
    for name, parameter in model.named_parameters():
        flat = parameter.detach().cpu().reshape(-1)
        wanted = max(1, round(_DENSITY * flat.numel()))
        positions = torch.randint(flat.numel(), (wanted,), generator=generator).unique()
        target = flat[positions] + 0.05 * torch.randn(positions.numel(), generator=generator)
        changes[name] = ParameterDelta.at(positions, flat[positions], target, parameter.shape, None)
    return SparseDelta(changes)


def _swaps(model: nn.Module, deltas: dict[str, SparseDelta], names: list[str], images: Tensor) -> Callable[[], Tensor]:
    groups = {name: [sample for sample, its in enumerate(names) if its == name] for name in dict.fromkeys(names)}
    ready = [
        (deltas[name].prepare(model), torch.tensor(samples, device=images.device)) for name, samples in groups.items()
    ]

    def swap() -> Tensor:
        parts = []
        for prepared, samples in ready:
            with prepared:
                parts.append(model(images[samples]))
        output = torch.empty(len(images), parts[0].shape[1], device=images.device)
        for (_, samples), part in zip(ready, parts, strict=True):
            output[samples] = part
        return output

    return swap


def _waiting(run: Callable[[], object], device: torch.device) -> Callable[[], None]:
    def wait() -> None:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return wait


def _check(mixed: Tensor, swapped: Tensor, base: Tensor) -> None:
    difference, effect = (mixed - swapped).abs().max(), (base - swapped).abs().max()
    assert difference < 1e-2 * effect, f"mixed batch and swaps differ by {difference}, the adapters by {effect}"

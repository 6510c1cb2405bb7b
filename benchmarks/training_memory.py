"""The cost of training: peak memory and step time of full fine-tuning, LoRA, SHiRA and RST's modes, a process each."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.plots import bars
from benchmarks.record import RESULTS, Row, write
from benchmarks.training_run import MODELS, MODES, measure

# glibc gives large blocks back at once, so that resident memory is what is in use.
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "1000000"}
_STEPS = 3
_LEFT_OUT = {("llama", "rst, w0 copied"), ("llama", "rst")}  # more than 10 GiB


def run(quick: bool, folder: Path = RESULTS) -> Path:
    """Train each model in each mode for some steps; a table a model, and one on paper."""
    if quick:
        rows = [Row(f"tiny: {mode}", measure("tiny", mode, 2)) for mode in MODES]
    else:
        models = [name for name in MODELS if name != "tiny"]
        rows = [_measure(model, mode) for model in models for mode in MODES if (model, mode) not in _LEFT_OUT]
    notes = [
        "AdamW. Peak: resident memory of the process from the model on, in times the model's weights, "
        f"with {' '.join(f'{name}={value}' for name, value in _ALLOCATOR.items())}. Step: seconds of the processor, "
        "the best after the first, as other processes were running. Tensors: the most bytes that they have at once in "
        "two steps, in times the weights, as torch's profiler counts them.",
        "vit: ViT-B/16, 8 images. gpt2: 12 layers of 1,024, 128 tokens. llama: 22 layers of 2,048, grouped queries, "
        "1.1 billion weights in bfloat16, 128 tokens; two modes would have taken more than 10 GiB there.",
        "LoRA r=4 and SHiRA r=4 on all linear layers, by PEFT; for SHiRA, GPT-2's transposed layers were made linear "
        "ones. RST trains all weights, but the support: 0.2 % of those of the linear layers, at random. Its first step "
        "has dense gradients too, one layer's at a time.",
        '"rst" copies w0 while the optimiser steps, when the activations are gone: of vit they are larger than the '
        'copy, of gpt2 with 128 tokens smaller. "rst, sparse" has that copy where the gradients were '
        '(base_storage="sparse"). Peaks of the rst modes have what torch.compile loads, 70 MiB.',
        "merged: the exported delta, put into the pretrained model made anew, gives the trained one bit for bit.",
    ]
    title = "Peak memory and step time of training"
    bars(rows, "peak, times the weights", title, folder / "training_memory.png")
    paper = [Row(name, numbers) for name, numbers in on_paper().items()]
    shape = "`N` weights in bfloat16, AdamW with states of the weights' dtype (float32 for LoRA's and the support's), "
    shape += "no activations; per GPU where FSDP2 shares everything among 8, which steps in backward "
    shape += "refuse. LoRA r=4 trains 0.15 % of Llama 2 7 B and 0.07 % of 70 B, the support 0.2 %."
    write("training_memory", "Memory of training on paper, GB", paper, [shape], part="paper", folder=folder)
    return write("training_memory", title, rows, notes, folder=folder)


def _measure(model: str, mode: str) -> Row:
    numbers = _child(model, mode, _STEPS) | {"tensors": _child(model, mode, 0)}
    order = ("weights, MiB", "trained", "peak, times the weights", "tensors", "step, CPU s", "merged")
    print(f"{model}, {mode}: {numbers}", flush=True)
    return Row(f"{model}: {mode}", {name: numbers[name] for name in order if name in numbers})


def _child(model: str, mode: str, steps: int) -> Any:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.training_run", model, mode, str(steps)]
    done = subprocess.run(command, env={**os.environ, **_ALLOCATOR}, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def on_paper(share: float = 0.002, ranks: int = 8) -> dict[str, dict[str, float]]:
    """GB of weights, gradients and optimiser states for 7 and 70 billion weights in bfloat16."""
    found: dict[str, dict[str, float]] = {}
    for billions, layers, adapted in ((7, 32, 0.0100), (70, 80, 0.0518)):  # Llama 2; billions of LoRA's weights, r=4
        weights = 2.0 * billions
        # a kept weight: position, column, w0, and in float32 value, gradient and two states
        kept = share * billions * (4 + 4 + 2 + 4 * 4)
        adapters = adapted * 4 * 4
        modes = {
            "full": 4 * weights,
            "rst, w0 copied": 5 * weights,
            "rst": 4 * weights + weights,
            "rst, sparse": 4 * weights,
            "rst in backward": 3 * weights + 2 * weights / layers,
            "LoRA r=4": weights + adapters,
            "rst, support": weights + kept + weights / layers,
        }
        for mode, size in modes.items():
            row = found.setdefault(mode, {})
            row[f"{billions} B, one GPU"] = round(size, 1)
            row[f"{billions} B, each of {ranks}"] = round(size / ranks, 1)
    return found

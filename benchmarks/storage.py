"""Bytes on disk per changed weight: every layout in use, this library's files, and the entropy bound.

Every size is that of a written file; every file of this library is read back and merged, and the result equals the
tuned model bit for bit.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks import vit_b_16
from benchmarks.adapter_sizes import adapter_rows
from benchmarks.checkpoint_pair import SWEEP, CheckpointPair, convolutions, synthetic
from benchmarks.file_tools import file_sizes
from benchmarks.record import RESULTS, Row, write
from benchmarks.storage_measurement import FILES, Measurement, measure
from benchmarks.storage_plot import draw
from benchmarks.trained_models import ClipRun, LanguageRun, adapted_clips, tuned_language_models
from examples.digit_adaptation import Training
from examples.rendered_pretraining import RenderedPretraining

FLOAT32_DENSITY, BFLOAT16_DENSITY = 0.001, 0.012  # those with a budget
BARE = "int32 + absolute"  # the arrays of rst's coo in a file without metadata
_DENSITIES = (0.0001, 0.001, 0.01, 0.012, 0.05, 0.2)
_QUICK_CLIP = ClipRun(RenderedPretraining(images=40, steps=2, batch=20), Training(iterations=3, batch=8), 20, (1e-5,))
_QUICK_LANGUAGE = LanguageRun(width=128, layers=2, pretraining=3, learning_rate=1e-5, warm_up=1, steps=(1,))


def run(quick: bool, folder: Path = RESULTS) -> Path:
    """Measure everything and write `storage.json`, three further tables and the plot."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        measurements = [measure(pair, scratch) for pair in _pairs(quick, scratch)]
        tools = _tool_rows(quick, scratch)
        adapters = adapter_rows(scratch, layers=1 if quick else 12)
    notes = [
        "Bits of the whole file, header included, for each changed weight; 8 bits are a byte. Every file was written; "
        "rst's were read back and merged, and gave the tuned model bit for bit.",
        "bound: log2 of the ways to choose the changed weights of each tensor, and the entropy of the steps for a code "
        "that knows w0; empty where the changes are too few to estimate it.",
        *budget_notes(measurements),
        "Sources of the layouts: the docstrings of benchmarks/layouts.py.",
    ]
    title = "Storage: bits for each changed weight, by layout"
    path = write("storage", title, [one.row() for one in measurements], notes, folder=folder)
    _write_parts(measurements, folder)
    notes = [
        "Bytes that turn one safetensors file into another. zstd and xdelta3 were undone and compared with the source."
    ]
    write("storage", "Storage: bytes of a patch, by tool", tools, notes, part="tools", folder=folder)
    adapters += _delta_rows(measurements)
    notes = [
        "PEFT: adapter_model.safetensors as save_pretrained writes it, r=4 on every linear layer of a ViT-B/16, "
        "float32. rst: the same number format, 0.1 % of all weights."
    ]
    write("storage", "Storage: adapters of a ViT-B/16", adapters, notes, part="adapters", folder=folder)
    draw(measurements, folder / "storage.png")
    return path


def budget_notes(measurements: list[Measurement]) -> list[str]:
    """What design and measurement say of the two densities that have a budget."""
    notes = []
    for one in (one for one in measurements if SWEEP in one.counts.name):
        coo, packed, step = (one.bits(FILES[i].name) for i in (0, 1, 3))
        if one.counts.dtype == torch.float32 and _near(one, FLOAT32_DENSITY):
            payload, bare = coo - one.part_bits(FILES[0].name).metadata, one.bits(BARE)
            notes.append(
                f"{one.counts.name}: coo {coo:.2f} bits (budget 64.5), of which arrays {payload:.2f} and header "
                f"{coo - payload:.2f}: {one.header_bytes_a_tensor():.0f} bytes a tensor over "
                f"{one.counts.changed / one.counts.tensors:.0f} changed weights in each. What stands in the way is one "
                f"named array for each tensor's positions and one for its values: safetensors alone, without anything "
                f"else in the file, takes {bare:.2f} for them ({BARE}). Packed, which pools the tensors: {packed:.2f} "
                f"with residuals, {step:.2f} with steps (budget 27)."
            )
        if _in_bfloat16(one) and _near(one, BFLOAT16_DENSITY):
            notes.append(f"{one.counts.name}: packed step {step / 8:.3f} bytes (budget 1.3).")
    return notes + [_trained_note(one) for one in measurements if _in_bfloat16(one) and not one.counts.drawn]


def _trained_note(one: Measurement) -> str:
    """A trained bfloat16 model beside the budget for 1.2 %: its steps are wider than the synthetic ones."""
    step = one.part_bits(FILES[3].name)
    entropy = "unknown" if one.steps is None else f"{one.steps:.2f}"
    return (
        f"{one.counts.name}, {100 * one.counts.changed / one.counts.weights:.2f} % changed: packed step "
        f"{one.bits(FILES[3].name) / 8:.3f} bytes; positions {step.positions:.2f} bits (entropy {one.positions:.2f}), "
        f"steps {step.values:.2f} (entropy {entropy})."
    )


def _in_bfloat16(one: Measurement) -> bool:
    return one.counts.dtype == torch.bfloat16


def _near(one: Measurement, density: float) -> bool:
    return abs(one.counts.changed / one.counts.weights / density - 1) < 0.05


def _pairs(quick: bool, cache: Path) -> Iterator[CheckpointPair]:
    for dtype in (torch.float32, torch.bfloat16):
        base = vit_b_16.weights(dtype)
        densities = _DENSITIES
        if quick:
            base = first_blocks(base, 2)
            densities = (FLOAT32_DENSITY,) if dtype == torch.float32 else (BFLOAT16_DENSITY,)
        for density in densities:
            yield synthetic(base, density)
    yield convolutions(FLOAT32_DENSITY, layers=2 if quick else 32)
    yield from adapted_clips(_QUICK_CLIP, cache) if quick else adapted_clips(ClipRun())
    yield from tuned_language_models(_QUICK_LANGUAGE if quick else LanguageRun())


def first_blocks(state: dict[str, torch.Tensor], count: int) -> dict[str, torch.Tensor]:
    """The weights of the first transformer blocks alone."""
    prefixes = tuple(f"transformer.resblocks.{layer}." for layer in range(count))
    return {name: tensor for name, tensor in state.items() if name.startswith(prefixes)}


def _tool_rows(quick: bool, scratch: Path) -> list[Row]:
    """One row a tool, one column a pair of files."""
    columns = {}
    for dtype, density in ((torch.float32, FLOAT32_DENSITY), (torch.bfloat16, BFLOAT16_DENSITY)):
        base = first_blocks(vit_b_16.weights(dtype), 1 if quick else 3)
        pair = synthetic(base, density, f"{sum(tensor.numel() for tensor in base.values()) / 1e6:.0f} M weights")
        columns[pair.name] = file_sizes(pair, scratch, levels=(3,) if quick else (3, 19))
    tools = next(iter(columns.values()))
    return [Row(tool, {f"bytes: {name}": sizes[tool] for name, sizes in columns.items()}) for tool in tools]


def _delta_rows(measurements: list[Measurement]) -> list[Row]:
    sweep = [one for one in measurements if one.counts.dtype == torch.float32 and SWEEP in one.counts.name]
    one = next(one for one in sweep if _near(one, FLOAT32_DENSITY))
    return [
        Row(
            file.name,
            {
                "trained weights": one.counts.changed,
                "bytes": one.sizes[file.name],
                "bits a weight": round(one.bits(file.name), 2),
            },
        )
        for file in FILES
    ]


def _write_parts(measurements: list[Measurement], folder: Path) -> None:
    notes = [
        "positions: log2 of the ways to choose them, beside the packed stream. Where changes cluster, the stream is "
        "the smaller.",
        "steps, blind: entropy of the steps for a code that does not look at w0; given w0: for one that knows the "
        "binade of each. Empty: too few changes to estimate.",
        "metadata: everything that is neither positions nor values, in the coo file and in the packed one (step).",
    ]
    rows = [one.parts_row() for one in measurements]
    write("storage", "Storage: where the bits of rst's files go", rows, notes, part="parts", folder=folder)

"""Adapt a small CLIP to real handwritten digits, ship the change as a sparse delta, merge it back bit for bit.

    python -m examples.quickstart

Pretrains on rendered, captioned digits (cached), adapts to scikit-learn's handwritten ones without their labels, and
prints what each method scores and what it stores. Two cores, a few minutes, no download.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cmkd import Student
from examples.digit_adaptation import DigitTask, Method, Training, accuracy, adapt, digit_student, digit_task
from examples.quickstart_report import Run, draw, table
from examples.rendered_pretraining import RenderedPretraining
from examples.small_clip import pretrained_clip
from rst import SparseDelta, merge

CACHE = Path(".cache")
METHODS = (
    Method("Source-only fine-tuning", cmkd=False),
    Method("Linear probe with CMKD", train_encoder=False),
    Method("CMKD, all weights"),
    Method("CMKD + RST, tau = 3e-5", threshold=3e-5),
    Method("CMKD + RST, tau = 1e-4", threshold=1e-4),
)


@dataclass(frozen=True)
class Settings:
    """Everything that decides the numbers."""

    pretraining: RenderedPretraining = field(default_factory=RenderedPretraining)
    training: Training = field(default_factory=Training)
    source_images: int = 2_000
    seeds: int = 3


def quickstart(settings: Settings, output: Path, cache: Path, console: Console) -> list[Run]:
    """Pretrain, adapt with every method, print the table, ship one delta, draw. Returns the runs of the table."""
    output.mkdir(parents=True, exist_ok=True)
    clip = pretrained_clip(settings.pretraining, cache)
    encoder = clip.visual
    base = output / "base.safetensors"
    save_file({f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}, base)
    task = digit_task(clip, settings.source_images)

    zero_shot = accuracy(lambda images: task.teacher(encoder(images)), task.target)
    adapted = _adapted(encoder, task, settings, output)
    bar = track(adapted, "Adapting to handwritten digits", len(METHODS) * settings.seeds, console=console)
    runs = [Run("Zero-shot", zero_shot, dsp=0), *bar]
    console.print(table(runs))

    shipped = next(run for run in reversed(runs) if run.delta is not None)
    _ship(shipped, base, output / "merged.safetensors", digit_student(encoder, torch.Generator()).eval(), task, console)
    draw(runs, output / "quickstart.png")
    console.print(f"Figure: {output / 'quickstart.png'}")
    return runs


def _adapted(encoder: nn.Module, task: DigitTask, settings: Settings, output: Path) -> Iterator[Run]:
    """Train every method with every seed, two runs at a time with a core each: faster than a run on two cores."""
    jobs = [(method, seed) for method in METHODS for seed in range(settings.seeds)]
    with ThreadPoolExecutor(max_workers=2) as pool:
        yield from pool.map(lambda job: _adapt_once(encoder, task, settings.training, job[0], job[1], output), jobs)


def _adapt_once(
    encoder: nn.Module, task: DigitTask, training: Training, method: Method, seed: int, output: Path
) -> Run:
    """Train from the pretrained encoder, and store what this task needs beside it."""
    generator = torch.Generator().manual_seed(seed)  # the head's start and the batches
    student = digit_student(encoder, generator)
    delta = adapt(student, method, task, training, generator)
    artefact = output / f"{method.file_name}-seed{seed}.safetensors"
    _store(student, delta, method, artefact)
    dsp = _downstream_parameters(student, encoder)
    return Run(method.name, accuracy(student, task.target), dsp, student, artefact, delta)


def _store(student: Student, delta: SparseDelta | None, method: Method, path: Path) -> None:
    if delta is not None:
        delta.save(path)
    elif method.train_encoder:
        save_file(student.state_dict(), path)
    else:
        save_file(student.head.state_dict(), path)


def _downstream_parameters(student: Student, pretrained: nn.Module) -> int:
    """Changed weights of the encoder, plus all of the head's (Sec. IV.A, for one task)."""
    pairs = zip(student.encoder.parameters(), pretrained.parameters(), strict=True)
    changed = sum(int((weight != origin).sum()) for weight, origin in pairs)
    return changed + sum(weight.numel() for weight in student.head.parameters())


def _ship(run: Run, base: Path, merged_path: Path, receiver: Student, task: DigitTask, console: Console) -> None:
    """Merge the delta's file into the base's file, as `rst merge` does, and hold the result against the tuned model."""
    assert run.artefact is not None
    assert run.student is not None
    merge(base, run.artefact, merged_path)
    merged = load_file(merged_path)
    _check_bit_identical(merged, run.student.state_dict())
    receiver.load_state_dict(merged)
    score = accuracy(receiver, task.target)
    if score != run.accuracy:
        raise RuntimeError(f"the merged model scores {score} %, the tuned one {run.accuracy} %")
    console.print(
        f"{base.name} ({base.stat().st_size:,} bytes) + {run.artefact.name} ({run.stored_bytes:,} bytes) "
        f"= {merged_path.name}: all {len(merged)} tensors are bit-identical to the tuned model's, "
        f"and it scores the same {score:.2f} %."
    )


def _check_bit_identical(merged: dict[str, Tensor], tuned: dict[str, Tensor]) -> None:
    """Compare every tensor: name, dtype, shape and bytes. Raises `RuntimeError` naming one that differs."""
    different = merged.keys() ^ tuned.keys()
    different |= {name for name in merged.keys() & tuned.keys() if _raw(merged[name]) != _raw(tuned[name])}
    if different:
        raise RuntimeError(f"{len(different)} tensors of the merged and the tuned model differ, first {min(different)}")


def _raw(tensor: Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    return tensor.dtype, tensor.shape, tensor.numpy().tobytes()


def main(
    seeds: Annotated[int, typer.Option(min=1, help="Adaptation runs of each method.")] = 3,
    output: Annotated[Path, typer.Option(help="Folder for the artefacts and the figure.")] = Path("outputs/quickstart"),
) -> None:
    """Adapt a small CLIP to handwritten digits and ship the change as a sparse delta."""
    torch.set_num_threads(1)  # one core a run; sums are split among threads, so this also fixes the last digits
    quickstart(Settings(seeds=seeds), output, CACHE, Console())


if __name__ == "__main__":
    typer.run(main)

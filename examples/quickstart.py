"""Adapt a small CLIP to real handwritten digits, ship the change as a sparse delta, merge it back bit for bit.

    python -m examples.quickstart

Pretrains on rendered, captioned digits (cached), adapts to scikit-learn's handwritten ones without their labels, and
prints what each method scores and what it stores. Two cores, a few minutes, no download.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
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
from examples.quickstart_report import Run, draw, markdown, table
from examples.rendered_pretraining import RenderedPretraining
from examples.small_clip import pretrained_clip
from rst import SparseDelta, merge

CACHE = Path(".cache")
TABLE = Path(__file__).with_name("quickstart-table.md")
"""The table as it was measured last: `--record` writes it, the examples' README shows it."""
METHODS = (
    Method("Source-only fine-tuning", cmkd=False),
    Method("Linear probe with CMKD", train_encoder=False),
    Method("CMKD, all weights"),
    Method("CMKD + RST, 2 % kept", ratio=0.02),
    Method("CMKD + RST, 0.5 % kept", ratio=0.005),
)


@dataclass(frozen=True)
class Settings:
    """Everything that decides the numbers."""

    pretraining: RenderedPretraining = field(default_factory=RenderedPretraining)
    training: Training = field(default_factory=Training)
    source_images: int = 2_000
    seeds: int = 3


@dataclass(frozen=True)
class Base:
    """One pretrained encoder, in memory and as a file, with the task as its text tower sees it."""

    seed: int
    encoder: nn.Module
    task: DigitTask
    path: Path


def quickstart(settings: Settings, output: Path, cache: Path, console: Console) -> list[Run]:
    """Pretrain, adapt with every method, print the table, ship one delta, draw. Returns the runs of the table."""
    output.mkdir(parents=True, exist_ok=True)
    bases = [_base(settings, seed, output, cache) for seed in range(settings.seeds)]
    adapted = _adapted(bases, settings.training, output)
    bar = track(adapted, "Adapting to handwritten digits", len(METHODS) * len(bases), console=console)
    runs = [*map(_zero_shot, bases), *bar]
    console.print(table(runs))

    shipped = next(run for run in reversed(runs) if run.delta is not None)
    _ship(shipped, bases[-1], output / "merged.safetensors", console)
    draw(runs, output / "quickstart.png")
    console.print(f"Figure: {output / 'quickstart.png'}")
    return runs


def _base(settings: Settings, seed: int, output: Path, cache: Path) -> Base:
    """Pretrain, or read from the cache; pretraining is part of what varies, so each seed has its own."""
    clip = pretrained_clip(replace(settings.pretraining, seed=seed), cache)
    path = output / f"base-seed{seed}.safetensors"
    save_file({f"encoder.{name}": tensor for name, tensor in clip.visual.state_dict().items()}, path)
    return Base(seed, clip.visual, digit_task(clip, settings.source_images), path)


def _zero_shot(base: Base) -> Run:
    return Run("Zero-shot", accuracy(lambda images: base.task.teacher(base.encoder(images)), base.task.target), dsp=0)


def _adapted(bases: Sequence[Base], training: Training, output: Path) -> Iterator[Run]:
    """Train every method from every base, two runs at a time with a core each: faster than a run on two cores."""
    jobs = [(method, base) for method in METHODS for base in bases]
    with ThreadPoolExecutor(max_workers=2) as pool:
        yield from pool.map(lambda job: _adapt_once(job[0], job[1], training, output), jobs)


def _adapt_once(method: Method, base: Base, training: Training, output: Path) -> Run:
    """Train from the pretrained encoder, and store what this task needs beside it."""
    generator = torch.Generator().manual_seed(base.seed)  # the head's start and the batches
    student = digit_student(base.encoder, generator)
    delta = adapt(student, method, base.task, training, generator)
    artefact = output / f"{method.file_name}-seed{base.seed}.safetensors"
    _store(student, delta, method, artefact)
    dsp = _downstream_parameters(student, base.encoder)
    return Run(method.name, accuracy(student, base.task.target), dsp, student, artefact, delta)


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


def _ship(run: Run, base: Base, merged_path: Path, console: Console) -> None:
    """Merge the delta's file into the base's file, as `rst merge` does, and hold the result against the tuned model."""
    assert run.artefact is not None
    assert run.student is not None
    merge(base.path, run.artefact, merged_path)
    merged = load_file(merged_path)
    _check_bit_identical(merged, run.student.state_dict())
    receiver = digit_student(base.encoder, torch.Generator()).eval()
    receiver.load_state_dict(merged)
    score = accuracy(receiver, base.task.target)
    if score != run.accuracy:
        raise RuntimeError(f"the merged model scores {score} %, the tuned one {run.accuracy} %")
    console.print(
        f"{base.path.name} ({base.path.stat().st_size:,} bytes) + {run.artefact.name} ({run.stored_bytes:,} bytes) "
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
    seeds: Annotated[int, typer.Option(min=1, help="Pretrained models, and runs of each method.")] = 3,
    output: Annotated[Path, typer.Option(help="Folder for the artefacts and the figure.")] = Path("outputs/quickstart"),
    record: Annotated[
        bool, typer.Option("--record", help=f"Write the table to {TABLE.name}, for the examples' README.")
    ] = False,
) -> None:
    """Adapt a small CLIP to handwritten digits and ship the change as a sparse delta."""
    torch.set_num_threads(1)  # one core a run; sums are split among threads, so this also fixes the last digits
    runs = quickstart(Settings(seeds=seeds), output, CACHE, Console())
    if record:
        TABLE.write_text(markdown(runs), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)

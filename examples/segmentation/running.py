"""Running a cell: build, train, save what must be stored, draw pictures, write the JSON file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed

from examples.experiment.progress import Progress
from examples.segmentation.artefact import store
from examples.segmentation.building import build_objective, build_student
from examples.segmentation.cells import Cell
from examples.segmentation.domains import get_domain
from examples.segmentation.pictures import choose_scenes, digest_views, draw, predict_all
from examples.segmentation.rare_classes import RareClassSampler, count_pixels
from examples.segmentation.scene_batches import SceneBatches
from examples.segmentation.settings import Settings
from examples.segmentation.training import evaluate, train

LIBRARIES = ("torch", "torchvision", "transformers", "peft", "torchmetrics", "accelerate", "residual-sparse-training")


def run_cell(
    cell: Cell, root: Path, *, workers: int = 0, advance: Callable[[int], None] = lambda iteration: None
) -> dict[str, Any]:
    """Run a cell, or go on with it where it was stopped, and store its result.

    Args:
        cell: what to run.
        root: folder that holds the data sets' folders.
        workers: processes that read scenes ahead of time.
        advance: told the number of iterations done.
    """
    cell.path.parent.mkdir(parents=True, exist_ok=True)
    settings = cell.settings
    accelerator = Accelerator(mixed_precision=settings.mixed_precision)
    set_seed(cell.seed)
    student = build_student(settings).to(accelerator.device)

    target = get_domain(settings.target)
    shown = choose_scenes(target, root)
    before = predict_all(student, shown, settings.target_size, accelerator.device)

    progress, stored = Progress(), None
    if settings.method == "none":
        progress.add_scores(0, evaluate(student, root, settings, None, accelerator), seconds=0.0)
    else:
        objective = build_objective(settings, student)
        progress, trainer = train(
            student,
            objective,
            build_batches(settings, root, cell.seed),
            root,
            settings,
            accelerator,
            checkpoint_path=cell.checkpoint_path,
            workers=workers,
            advance=advance,
        )
        stored = store(student, trainer, cell.path.with_suffix(".safetensors"))

    after = predict_all(student, shown, settings.target_size, accelerator.device)
    draw(target, shown, before, after, settings.target_size, cell.path.with_suffix(".png"))
    last = progress.curve[-1]
    outcome = {
        "last": last["miou"],
        "best": max(point["miou"] for point in progress.curve),
        "per_class": last["per_class"],
        "dsp": stored.dsp if stored else 0,
        "bytes": stored.bytes if stored else 0,
        "file": stored.path.name if stored else None,
        "digest": digest_views(student, shown, settings.target_size, accelerator.device),
        "hours": progress.seconds / 3600,
        "curve": progress.curve,
    }
    result = cell.record(outcome, accelerator.device, LIBRARIES)
    cell.store(result)
    return result


def build_batches(settings: Settings, root: Path, seed: int) -> SceneBatches:
    """Crops of both domains; the source's by rare-class sampling if the settings have a temperature.

    Pixels of each class are counted once, into `class_pixels.json` in the source's folder.
    """
    source, target = get_domain(settings.source), get_domain(settings.target)
    sampler = None
    if settings.rare_class_temperature > 0:
        pixels = count_pixels(source, source.scenes(root, "train"), root / source.name / "class_pixels.json")
        sampler = RareClassSampler(pixels, settings.rare_class_temperature, settings.min_pixels)
    return SceneBatches(
        source,
        target,
        root,
        source_size=settings.source_size,
        target_size=settings.target_size,
        crop=settings.crop,
        batch_size=settings.batch_size,
        seed=seed,
        sampler=sampler,
        min_pixels=settings.min_pixels // 2,
    )

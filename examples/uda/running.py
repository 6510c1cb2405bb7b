"""Running a cell: load, train, save what the task must store, write the JSON file."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed
from torch import nn

from cmkd import VALIDATORS, Student, TaskHead, freeze_batchnorm
from examples.experiment.progress import Progress
from examples.uda.artefact import store
from examples.uda.backbones import Backbone, load_backbone
from examples.uda.benchmarks import get_benchmark
from examples.uda.cells import Cell
from examples.uda.divergence import DivergedError
from examples.uda.domains import TaskData
from examples.uda.evaluation import evaluate
from examples.uda.methods import build_objective, parse_method
from examples.uda.prototypes import SOURCE_IMAGES, prototype_teacher
from examples.uda.settings import Settings
from examples.uda.tensorboard_log import TensorBoardLog
from examples.uda.training import train

LIBRARIES = ("torch", "torchvision", "open_clip_torch", "timm", "accelerate", "residual-sparse-training")


def run_cell(
    cell: Cell,
    root: Path,
    *,
    workers: int = 0,
    advance: Callable[[int], None] = lambda iteration: None,
    tensorboard: bool = False,
    load: Callable[[Settings, Sequence[str], Path], Backbone] = load_backbone,
) -> dict[str, Any]:
    """Run a cell, or go on with it where it was stopped, and store its result.

    A cell that diverges is done as well: its result has the status "diverged" and the iteration, and no scores.

    Args:
        cell: what to run.
        root: folder of the benchmark's data.
        workers: processes that read and augment images ahead of time.
        advance: told the number of iterations done.
        tensorboard: whether the curve also goes to event files beside the result.
        load: makes the backbone from settings, class names and `root`; smoke runs have tiny ones.
    """
    cell.path.parent.mkdir(parents=True, exist_ok=True)
    settings, method = cell.settings, parse_method(cell.settings.method)
    accelerator = Accelerator(mixed_precision=settings.mixed_precision)
    set_seed(cell.seed)

    benchmark = get_benchmark(settings.benchmark)
    backbone = load(settings, benchmark.class_names(), root)
    backbone.encoder.eval().to(accelerator.device)
    preset = settings.resolved_preset()
    data = TaskData(benchmark, root, cell.task, backbone, accelerator, preset=preset)
    teacher = build_teacher(backbone, data, workers=workers) if method.needs_teacher else None

    if method.trains:
        student = build_student(backbone, settings, len(benchmark.classes), trains_encoder=method.trains_encoder)
        sizes = {"feature_dim": backbone.feature_dim, "classes": len(benchmark.classes)}
        objective = build_objective(settings, teacher, **sizes)
        student.head = objective.task_head(**sizes) or student.head
        domains = data.domains(
            batch_size=settings.batch_size,
            seed=cell.seed,
            strong_images=objective.needs_strong_images,
            workers=workers,
        )
        try:
            with TensorBoardLog(cell.path.with_suffix(".tensorboard")) as log:
                progress, trainer = train(
                    student,
                    objective,
                    domains,
                    settings,
                    accelerator,
                    sparse=method.rst,
                    checkpoint_path=cell.checkpoint_path,
                    workers=workers,
                    advance=advance,
                    observe=log.add if tensorboard and accelerator.is_main_process else _ignore,
                )
        except DivergedError as error:
            outcome = {"status": "diverged", "iteration": error.iteration, "error": str(error)}
            return _store(cell, outcome, accelerator)
        stored = None
        if accelerator.is_main_process:
            stored = store(student, trainer, cell.path.with_suffix(".safetensors"), encoder=method.trains_encoder)
        (stored,) = broadcast_object_list([stored])
    else:
        assert teacher is not None
        progress, stored = _zero_shot(backbone.encoder, teacher, data, workers), None

    outcome = {
        "status": "finished",
        **summarise(progress),
        "dsp": stored.dsp if stored else 0,
        "bytes": stored.bytes if stored else 0,
        "file": stored.path.name if stored else None,
        "hours": progress.seconds / 3600,
        "curve": progress.curve,
    }
    return _store(cell, outcome, accelerator)


def build_student(backbone: Backbone, settings: Settings, classes: int, *, trains_encoder: bool) -> Student:
    """Put the pretrained head, or a fresh one (App. D), on the encoder; freeze its BatchNorm if that is set."""
    preset = settings.resolved_preset()
    head = backbone.head or TaskHead(
        backbone.feature_dim,
        classes,
        linear_bias=preset.head_linear_bias,
        layer_norm_eps=preset.head_layer_norm_eps,
    )
    if settings.frozen_batchnorm:
        freeze_batchnorm(backbone.encoder, affine=preset.batchnorm_affine_frozen)
    if not trains_encoder:
        backbone.encoder.requires_grad_(False)
    return Student(backbone.encoder, head)


def build_teacher(backbone: Backbone, data: TaskData, *, workers: int) -> nn.Module:
    """The backbone's own teacher, such as CLIP's text; without one App. E's prototypes, learned on the source."""
    if backbone.teacher is not None:
        return backbone.teacher
    assert backbone.classifier is not None
    source = data.training_pass("source", workers=workers, at_most=SOURCE_IMAGES)
    classifier = backbone.classifier.to(data.accelerator.device)
    return prototype_teacher(
        backbone.encoder,
        classifier,
        source,
        len(data.benchmark.classes),
        logit_factor=data.preset.prototype_logit_factor,
    )


def summarise(progress: Progress) -> dict[str, Any]:
    """Accuracy at the end, at its best by the target's labels (an oracle), and where each label-free score is best."""
    curve = progress.curve
    best = max(curve, key=lambda point: point["accuracy"])
    selected = {name: max(curve, key=lambda point: point["validators"][name]) for name in VALIDATORS}
    return {
        "last": curve[-1]["accuracy"],
        "oracle": best["accuracy"],
        "oracle_iteration": best["iteration"],
        "selected": {
            name: {"accuracy": point["accuracy"], "iteration": point["iteration"]} for name, point in selected.items()
        },
        "per_class": curve[-1]["per_class"],
    }


def _ignore(point: dict[str, Any]) -> None:
    pass


def _store(cell: Cell, outcome: dict[str, Any], accelerator: Accelerator) -> dict[str, Any]:
    result = cell.record({**outcome, "processes": accelerator.num_processes}, accelerator.device, LIBRARIES)
    if accelerator.is_main_process:
        cell.store(result)
    accelerator.wait_for_everyone()
    return result


def _zero_shot(encoder: nn.Module, teacher: nn.Module, data: TaskData, workers: int) -> Progress:
    test = data.test_pass(workers=workers)
    classify = nn.Sequential(encoder, teacher.to(data.accelerator.device))
    scores = evaluate(classify, test, data.accelerator, mean_per_class=data.benchmark.metric == "mean_per_class")
    return Progress(curve=[{"iteration": 0, **asdict(scores), "losses": {}}])

"""One run: the loop of `examples.uda`, CMKD as the objective, and a tuning that selects what is trained."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from examples.peft_comparison.plan import Plan
from examples.peft_comparison.tuning import Tuning
from examples.uda.backbones import Backbone, load_backbone
from examples.uda.benchmarks import get_benchmark
from examples.uda.cells import Cell, Task
from examples.uda.divergence import DivergedError
from examples.uda.domains import TaskData
from examples.uda.methods import build_objective
from examples.uda.running import LIBRARIES, build_student, build_teacher, summarise
from examples.uda.settings import Settings
from examples.uda.training import train


class Runner:
    """Runs the cells of one plan; the pretrained encoder and its teacher are made once a task."""

    def __init__(
        self,
        plan: Plan,
        root: Path,
        *,
        load: Callable[[Settings, Sequence[str], Path], Backbone] = load_backbone,
    ) -> None:
        """Run `plan` on the data below `root`; `load` makes the backbone, as in `examples.uda.running`."""
        self.settings = plan.settings
        self.benchmark = get_benchmark(plan.settings.benchmark)
        self.root = root
        self.load = load
        self.accelerator = Accelerator()
        self._pretrained: dict[Task, tuple[Backbone, nn.Module]] = {}

    def run(self, cell: Cell, tuning: Tuning) -> dict[str, Any]:
        """Run a cell, or go on with it where it was stopped; store its result and what the task has to store.

        A cell that diverges is done as well: its result has the status "diverged" and no scores.
        """
        settings, classes = cell.settings, len(self.benchmark.classes)
        folder = cell.path.with_suffix("")
        folder.mkdir(parents=True, exist_ok=True)
        pretrained, teacher = self.pretrained(cell.task)
        backbone = copy.deepcopy(pretrained)

        set_seed(cell.seed)
        student = build_student(backbone, settings, classes, trains_encoder=True)
        objective = build_objective(settings, teacher, feature_dim=backbone.feature_dim, classes=classes)
        objective = tuning.attach(student, objective, iterations=settings.iterations)
        preset = settings.resolved_preset()
        data = TaskData(self.benchmark, self.root, cell.task, backbone, self.accelerator, preset=preset)
        domains = data.domains(batch_size=settings.batch_size, seed=cell.seed, strong_images=False, workers=0)
        try:
            progress, trainer = train(
                student,
                objective,
                domains,
                settings,
                self.accelerator,
                sparse=tuning.threshold is not None,
                checkpoint_path=cell.checkpoint_path,
            )
        except DivergedError as error:
            return self._store(cell, tuning, {"status": "diverged", "iteration": error.iteration, "error": str(error)})
        outcome = {
            "status": "finished",
            **summarise(progress),
            "dsp": tuning.store(student, trainer, folder),
            "bytes": sum(path.stat().st_size for path in folder.iterdir()),
            "hours": progress.seconds / 3600,
            "curve": progress.curve,
        }
        return self._store(cell, tuning, outcome)

    def pretrained(self, task: Task) -> tuple[Backbone, nn.Module]:
        """The pretrained encoder, to be copied, and the teacher of a task: CLIP's own or App. E's prototypes."""
        if task not in self._pretrained:
            backbone = self.load(self.settings, self.benchmark.class_names(), self.root)
            backbone.encoder.eval().to(self.accelerator.device)
            preset = self.settings.resolved_preset()
            data = TaskData(self.benchmark, self.root, task, backbone, self.accelerator, preset=preset)
            self._pretrained[task] = backbone, build_teacher(backbone, data, workers=0)
        return self._pretrained[task]

    def _store(self, cell: Cell, tuning: Tuning, outcome: dict[str, Any]) -> dict[str, Any]:
        tuned = {"tuning": tuning.label, "rate": getattr(cell.settings, tuning.rate)}
        result = cell.record({**tuned, **outcome}, self.accelerator.device, (*LIBRARIES, "peft"))
        cell.store(result)
        return result

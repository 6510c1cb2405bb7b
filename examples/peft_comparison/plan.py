"""The plan of the comparison: the ways to tune, the benchmarks, and the candidate learning rates of each."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from examples.peft_comparison.tuning import Adapter, BitFit, FullTuning, LinearProbe, SparseResidual, Tuning
from examples.uda.cells import Cell, Task
from examples.uda.settings import Settings
from examples.uda.tables import FIRST_SEED

SEEDS = 3
TABLE = "peft_comparison"


@dataclass(frozen=True)
class Plan:
    """One benchmark's part.

    Attributes:
        name: on the command line.
        title: for reports.
        settings: of CMKD, for every tuning; the learning rate that is tuned is replaced.
        tasks: source and target; the learning rate is chosen on the first and holds for the others.
        rates: what every tuning chooses from.
        thresholds: RST's tau, a row each.
    """

    name: str
    title: str
    settings: Settings
    tasks: tuple[Task, ...]
    rates: tuple[float, ...]
    thresholds: tuple[float, ...]

    def tunings(self) -> list[Tuning]:
        """All rows that train, in the table's order."""
        return [
            FullTuning("Full fine-tuning"),
            LinearProbe("Linear probe"),
            BitFit("BitFit"),
            Adapter("LoRA r=1", kind="lora", rank=1),
            Adapter("LoRA r=4", kind="lora", rank=4),
            Adapter("AdaLoRA r=2 to 1", kind="adalora", rank=1),
            Adapter("AdaLoRA r=8 to 4", kind="adalora", rank=4),
            Adapter("SHiRA r=1", kind="shira", rank=1),
            *(SparseResidual(f"RST tau={tau:g}", threshold=tau) for tau in self.thresholds),
        ]

    def cell(self, tuning: Tuning, rate: float, task: Task, seed: int, output: Path) -> Cell:
        """One run of a tuning at one learning rate; `seed` counts from 0."""
        changes: dict[str, Any] = {tuning.rate: rate}
        settings = replace(self.settings, **changes)
        if tuning.threshold is not None:
            settings = replace(settings, method="cmkd+rst", threshold=tuning.threshold)
        return Cell(TABLE, self.name, f"{tuning.label} lr={rate:g}", settings, task, FIRST_SEED + seed, output)

    def search(self, tuning: Tuning, output: Path) -> dict[float, Cell]:
        """The runs that the learning rate is chosen by: the first task and seed at every rate."""
        return {rate: self.cell(tuning, rate, self.tasks[0], 0, output) for rate in self.rates}

    def final(self, tuning: Tuning, rate: float, output: Path) -> list[Cell]:
        """The runs of the table, at the chosen rate: every task and seed, that of the search among them."""
        return [self.cell(tuning, rate, task, seed, output) for task in self.tasks for seed in range(SEEDS)]

    def zero_shot(self, output: Path) -> list[Cell]:
        """The untrained teacher on every task."""
        settings = replace(self.settings, method="clip")
        return [Cell(TABLE, self.name, "Teacher", settings, task, FIRST_SEED, output) for task in self.tasks]


DIGITS = Plan(
    name="digits",
    title="Digits at 32 px, small CLIP",
    settings=Settings(
        benchmark="digits_small",
        method="cmkd",
        backbone="small_clip",
        weights="rendered-digits",
        preset="corrected",
        iterations=50,
        ramp_iterations=50,
        batch_size=24,
        encoder_lr=1e-3,
        head_lr=1e-2,
        evaluate_every=50,
    ),
    tasks=(("M", "U"), ("U", "M")),
    rates=(2e-4, 1e-3, 5e-3, 2.5e-2),
    thresholds=(1e-4, 3e-4, 1e-3),
)

PACS = Plan(
    name="pacs",
    title="PACS at 96 px, ImageNet MobileNetV2",
    settings=Settings(
        benchmark="pacs",
        method="cmkd",
        backbone="mobilenet_v2",
        weights="imagenet1k",
        teacher="prototypes",
        preset="corrected",
        lambda2=0.0,
        lambda3=0.0,
        iterations=40,
        ramp_iterations=40,
        batch_size=16,
        encoder_lr=3e-4,
        head_lr=3e-3,
        evaluate_every=40,
    ),
    tasks=(("A", "P"), ("P", "A")),
    rates=(2e-4, 1e-3, 5e-3),
    thresholds=(3e-5, 1e-4, 3e-4),
)

PLANS = {plan.name: plan for plan in (DIGITS, PACS)}

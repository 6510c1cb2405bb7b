"""The report of the quickstart: one table, and one figure of stored parameters and the places of the kept weights."""

import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from cmkd import Student
from rst import SparseDelta

COLUMNS = ("Method", "Target accuracy, %", "DSP", "Artefact, bytes")
STAGES = ("stem", "layer1", "layer2", "layer3", "layer4", "attnpool")  # of open_clip's ResNet, from the image on
COLOURS = ("#4c72b0", "#937860", "#55a868", "#dd8452", "#c44e52")


@dataclass(frozen=True)
class Run:
    """One trained model: its score, its downstream parameters, its artefact on disk."""

    method: str
    accuracy: float  # per cent of the held-out target images
    dsp: int
    student: Student | None = None  # none for zero-shot, which trains and stores nothing
    artefact: Path | None = None
    delta: SparseDelta | None = None  # with RST

    @property
    def stored_bytes(self) -> int:
        """Size of the artefact."""
        return self.artefact.stat().st_size if self.artefact else 0


def table(runs: Iterable[Run]) -> Table:
    """One row a method: mean and standard deviation of the accuracy, mean DSP, mean size of the artefact."""
    result = Table(
        title="Target: handwritten digits; mean ± standard deviation over the seeds",
        caption="DSP, downstream parameters: changed weights of the encoder, and all weights of the head",
    )
    for column in COLUMNS:
        result.add_column(column, justify="left" if column == "Method" else "right")
    for row in _rows(runs):
        result.add_row(*row)
    return result


def markdown(runs: Iterable[Run]) -> str:
    """The same table as the examples' README has it."""
    rule = "|---|" + "---:|" * (len(COLUMNS) - 1)
    header, *rows = [f"| {' | '.join(row)} |" for row in (COLUMNS, *_rows(runs))]
    return "\n".join([header, rule, *rows]) + "\n"


def _rows(runs: Iterable[Run]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for method, of_method in _by_method(runs).items():
        accuracies = [run.accuracy for run in of_method]
        spread = f" ± {statistics.stdev(accuracies):.1f}" if len(accuracies) > 1 else ""
        dsp = statistics.mean(run.dsp for run in of_method)
        size = statistics.mean(run.stored_bytes for run in of_method)
        rows.append((method, f"{statistics.mean(accuracies):.1f}{spread}", f"{dsp:,.0f}", f"{size:,.0f}"))
    return rows


def draw(runs: Iterable[Run], path: Path) -> None:
    """Write the figure as PNG."""
    methods = _by_method(runs)
    (zero_shot,) = (of_method for of_method in methods.values() if of_method[0].student is None)
    trained = {method: of_method for method, of_method in methods.items() if of_method[0].student is not None}
    colours = dict(zip(trained, COLOURS, strict=True))
    figure = Figure(figsize=(13, 5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _draw_scores(left, zero_shot, trained, colours)
    _draw_places(right, trained, colours)
    figure.savefig(path, dpi=130)


def _by_method(runs: Iterable[Run]) -> dict[str, list[Run]]:
    methods: dict[str, list[Run]] = {}
    for run in runs:
        methods.setdefault(run.method, []).append(run)
    return methods


def _draw_scores(axes: Axes, zero_shot: list[Run], trained: dict[str, list[Run]], colours: dict[str, str]) -> None:
    for method, runs in trained.items():
        stored, accuracies = [run.dsp for run in runs], [run.accuracy for run in runs]
        axes.plot(stored, accuracies, "o", color=colours[method], markersize=4, alpha=0.5)
        mean = statistics.mean(stored), statistics.mean(accuracies)
        axes.plot(*mean, "D", color=colours[method], markersize=9, label=method)
    axes.axhline(
        statistics.mean(run.accuracy for run in zero_shot),
        color="grey",
        linestyle="--",
        linewidth=1,
        label=f"{zero_shot[0].method}: stores none",
    )
    axes.set_xscale("log")
    axes.set_ylim(0, 100)
    axes.set_xlabel("stored parameters: changed encoder weights + head (DSP)")
    axes.set_ylabel("accuracy on held-out handwritten digits, %")
    axes.set_title("What a task stores and scores (diamonds: means, dots: seeds)", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)


def _draw_places(axes: Axes, trained: dict[str, list[Run]], colours: dict[str, str]) -> None:
    sparse = {method: runs[0] for method, runs in trained.items() if runs[0].delta is not None}
    student = next(iter(sparse.values())).student
    assert student is not None
    sizes = _by_stage((name, weight.numel()) for name, weight in student.encoder.named_parameters())
    height = 0.8 / len(sparse)
    for k, (method, run) in enumerate(sparse.items()):
        assert run.delta is not None
        kept = _by_stage((name.removeprefix("encoder."), change.nnz) for name, change in run.delta.items())
        rows = [row + (k - (len(sparse) - 1) / 2) * height for row in range(len(STAGES))]
        shares = [100 * kept[stage] / sizes[stage] for stage in STAGES]
        bars = axes.barh(rows, shares, height, color=colours[method], label=method)
        axes.bar_label(bars, [f"{kept[stage]:,}" for stage in STAGES], padding=3, fontsize=8)
    axes.set_yticks(range(len(STAGES)), [f"{stage}\n{sizes[stage]:,} weights" for stage in STAGES], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("weights kept, % of the stage (beside the bars: how many)")
    axes.set_title("Where in the encoder the kept weights lie (first seed)", fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)


def _by_stage(counts: Iterable[tuple[str, int]]) -> Counter[str]:
    stages: Counter[str] = Counter()
    for name, count in counts:
        stage = name.split(".")[0]
        stages[stage if stage in STAGES else "stem"] += count
    return stages

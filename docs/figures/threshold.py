"""What tau keeps and what it costs: the tutorial's run at several thresholds, selecting always or only at the end."""

import copy
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor

from docs.figures.digit_domains import Classifier, Digits, accuracy, adapt
from docs.figures.style import COLORS, save, table

THRESHOLDS = (0.0, 1e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2)
ROWS = ((1, "after every step"), (0, "once, at the end"))


def draw(base: Classifier, digits: Digits, folder: Path) -> None:
    """Write `threshold.png`, and the table beside it."""
    figure, (moves, kept, scores) = plt.subplots(1, 3, figsize=(12, 3.6))
    _draw_moves(moves, base, digits)
    pretrained = accuracy(base, digits.turned, digits.labels)
    rows = [("never (the pretrained model)", "", "0", f"{pretrained:.1f}")]
    for (every, when), color in zip(ROWS, COLORS, strict=False):
        runs = [_run(base, digits, tau, every) for tau in THRESHOLDS]
        rows += [(when, f"{tau:g}", f"{share:.2f}", f"{score:.1f}") for tau, share, score in runs]
        taus, shares, accuracies = zip(*runs, strict=True)
        kept.plot(taus, shares, marker="o", color=color, label=when)
        scores.plot(taus, accuracies, marker="o", color=color, label=when)
    scores.axhline(pretrained, color="0.6", linestyle=":", label="pretrained")
    kept.set(yscale="log", ylabel="% of weights kept", yticks=(0.1, 1, 10, 100), yticklabels=("0.1", "1", "10", "100"))
    scores.set(ylabel="accuracy on turned digits, %")
    for axis in (kept, scores):
        axis.set_xscale("symlog", linthresh=THRESHOLDS[1])
        axis.set(xlabel="tau", xlim=(-2e-5, 0.1), xticks=(0, 1e-4, 1e-3, 1e-2, 1e-1))
        axis.legend(fontsize=8, frameon=False)
    save(figure, folder / "threshold.png")
    header = ("Eq. 17 is applied", "tau", "weights kept, %", "accuracy on turned digits, %")
    (folder / "threshold.md").write_text(table(header, rows))


def _run(base: Classifier, digits: Digits, tau: float, every: int) -> tuple[float, float, float]:
    """Tau, the share of weights kept and the accuracy on turned digits, both in per cent."""
    model = copy.deepcopy(base)
    delta = adapt(model, digits, tau, every)
    return tau, 100 * delta.density, accuracy(model, digits.turned, digits.labels)


def _draw_moves(axis: Axes, base: Classifier, digits: Digits) -> None:
    """How far weights are from w0 after training: freely, and with Eq. 17 after every step."""
    edges = torch.logspace(-6, -1, 61)
    for tau, label, color in ((0.0, "without RST", COLORS[1]), (1e-3, "RST, tau = 1e-3", COLORS[0])):
        model = copy.deepcopy(base)
        adapt(model, digits, tau)
        axis.stairs(_histogram(model, base, edges), edges.numpy(), fill=True, alpha=0.6, color=color, label=label)
    axis.axvline(1e-3, color="0.3", linestyle="--", linewidth=1)
    axis.set(xscale="log", xlabel="|wt - w0| after training", ylabel="weights")
    axis.legend(fontsize=8, frameon=False)


def _histogram(model: Classifier, base: Classifier, edges: Tensor) -> list[float]:
    pairs = zip(model.parameters(), base.parameters(), strict=True)
    moves = torch.cat([(weight - origin).detach().abs().flatten() for weight, origin in pairs])
    counts: list[float] = torch.histogram(moves, edges).hist.tolist()
    return counts

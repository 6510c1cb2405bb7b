"""The figure of the storage family: bits per changed weight against density, for each dtype, and the trained models."""

from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.checkpoint_pair import SWEEP
from benchmarks.layouts import LAYOUTS
from benchmarks.storage_measurement import FILES, Measurement

_OTHERS = dict(zip(LAYOUTS, ("#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf", "#9467bd"), strict=True))
_OURS = dict(zip((file.name for file in FILES), ("#1f77b4", "#d62728", "#ff7f0e", "#2ca02c"), strict=True))


def draw(measurements: list[Measurement], path: Path) -> None:
    """Write the figure as PNG."""
    figure = Figure(figsize=(14, 11), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplot_mosaic([["float32", "bfloat16"], ["trained", "trained"]], height_ratios=[1.2, 1])
    for dtype in (torch.float32, torch.bfloat16):
        sweep = [one for one in measurements if one.counts.dtype == dtype and SWEEP in one.counts.name]
        _draw_sweep(panels[str(dtype).removeprefix("torch.")], sweep)
    _draw_trained(panels["trained"], [one for one in measurements if not one.counts.drawn])
    handles, labels = panels["float32"].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=110)


def _draw_sweep(axes: Axes, sweep: list[Measurement]) -> None:
    sweep = sorted(sweep, key=lambda one: one.counts.changed)
    densities = [100 * one.counts.changed / one.counts.weights for one in sweep]
    for name, colour in _OTHERS.items():
        bits = [_bits(one, name) for one in sweep]
        axes.plot(densities, bits, "s--", color=colour, markersize=4, linewidth=1, label=name)
    for name, colour in _OURS.items():
        axes.plot(densities, [_bits(one, name) for one in sweep], "o-", color=colour, markersize=5, label=name)
    bounds = [float("nan") if one.bound is None else one.bound for one in sweep]
    axes.plot(densities, bounds, ":", color="black", linewidth=2, label="entropy bound")
    axes.set_xscale("log")
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("changed weights, % of all")
    axes.set_ylabel("bits a changed weight, whole file")
    axes.set_title(f"{str(sweep[0].counts.dtype).removeprefix('torch.')}, {SWEEP}'s shapes, synthetic changes")
    axes.grid(alpha=0.3)


def _draw_trained(axes: Axes, trained: list[Measurement]) -> None:
    columns = _OTHERS | _OURS
    width = 0.8 / len(columns)
    for k, (name, colour) in enumerate(columns.items()):
        places = [i + (k - (len(columns) - 1) / 2) * width for i in range(len(trained))]
        bits = [_bits(one, name) for one in trained]
        axes.plot(places, bits, "o" if name in _OURS else "s", color=colour, markersize=8)
        for x, y in zip(places, bits, strict=True):
            axes.annotate(f"{y:.3g}", (x, y), (0, 7), textcoords="offset points", ha="center", rotation=90, fontsize=8)
    for i, one in enumerate(trained):
        if one.bound is not None:
            axes.hlines(one.bound, i - 0.45, i + 0.45, color="black", linestyle=":", linewidth=2)
    axes.set_xticks(range(len(trained)), [_label(one) for one in trained], fontsize=8)
    axes.set_ylabel("bits a changed weight, whole file")
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.margins(y=0.15)
    axes.set_title("Changes that training made (dotted: entropy bound, where it can be estimated)")
    axes.grid(axis="y", alpha=0.3)


def _label(one: Measurement) -> str:
    lines = one.counts.name.replace(" with ", "\nwith ").replace("adapted ", "\nadapted ").split(", ")
    return "\n".join([*lines, f"{100 * one.counts.changed / one.counts.weights:.2g} % changed"])


def _bits(one: Measurement, name: str) -> float:
    return float("nan") if isinstance(one.sizes[name], str) else one.bits(name)

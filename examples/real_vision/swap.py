"""Three domains as three deltas on one base, swapped live: every delta is scored on every domain, and drawn."""

import json
import statistics
import tempfile
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn

from examples.real_vision.compare_methods import DOMAINS, chosen_rate
from examples.real_vision.few_shot import few_shot
from examples.real_vision.methods import DELTA, METHODS
from examples.real_vision.network import base_model, logits
from examples.real_vision.resuming import read
from examples.real_vision.rules_report import DOMAIN_NAMES
from rst import SparseDelta

METHOD = "support of gradients"
SWAPS = 50


def swap(root: Path, accuracies: Path, folder: Path) -> list[Path]:
    """Adapt a base to each domain, write the deltas, put them on the one base in turn.

    Writes `swap.json` and `swap.png` into a folder.

    Raises:
        SystemExit: the base is not what it was when all deltas are off.
    """
    rate = chosen_rate(METHOD, read(accuracies))
    base = base_model(root)
    pristine = [weight.clone() for weight in base.state_dict().values()]
    rows, costs = {"base": _scores(base, root)}, {}
    with tempfile.TemporaryDirectory() as deltas:
        for domain in DOMAINS:
            path = _adapt(root, domain, rate, Path(deltas, domain))
            prepared = SparseDelta.load(path).prepare(base)
            with prepared:
                rows[f"delta of {DOMAIN_NAMES[domain]}"] = _scores(base, root)
            costs[DOMAIN_NAMES[domain]] = {"bytes": path.stat().st_size, "swap, ms": _milliseconds(prepared)}
    if not all(map(_same_bits, base.state_dict().values(), pristine)):
        raise SystemExit("the base has other bits after the swaps")
    record, picture = folder / "swap.json", folder / "swap.png"
    weights = sum(weight.nbytes for weight in pristine)
    record.write_text(json.dumps({"accuracy": rows, "deltas": costs, "bytes of the base": weights}, indent=1) + "\n")
    _draw(rows, costs, weights).savefig(picture, dpi=120)
    return [record, picture]


def _adapt(root: Path, domain: str, rate: float, folder: Path) -> Path:
    torch.manual_seed(0)
    tuned = METHODS[METHOD].train(base_model(root), rate, few_shot(root, domain, 0).train)
    folder.mkdir()
    tuned.save(folder)
    return folder / DELTA


def _scores(network: nn.Module, root: Path) -> dict[str, float]:
    scores = {}
    for domain, name in DOMAIN_NAMES.items():
        images, labels = few_shot(root, domain, 0).test
        scores[name] = float((logits(network, images).argmax(1) == labels).float().mean())
    return scores


def _milliseconds(prepared: AbstractContextManager[Any]) -> float:
    """On and off again, the median."""
    times = []
    for _ in range(SWAPS):
        begun = time.perf_counter()
        with prepared:
            pass
        times.append(1e3 * (time.perf_counter() - begun))
    return statistics.median(times)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return one.numpy().tobytes() == other.numpy().tobytes()


def _draw(rows: dict[str, dict[str, float]], costs: dict[str, dict[str, float]], weights: int) -> Figure:
    figure = Figure(figsize=(7.5, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    columns = list(next(iter(rows.values())))
    table = [[100 * of_row[column] for column in columns] for of_row in rows.values()]
    axes.imshow(table, cmap="Blues", vmin=0, vmax=140, aspect="auto")
    for y, values in enumerate(table):
        for x, value in enumerate(values):
            axes.text(x, y, f"{value:.1f}", ha="center", va="center")
    labels = [f"the base\n{weights / 1e6:.1f} MB"]
    labels += [f"+ {name}\n{cost['bytes'] / 1e3:.0f} kB, {cost['swap, ms']:.1f} ms" for name, cost in costs.items()]
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_xlabel("test images of")
    axes.set_title("One base, three deltas swapped in its memory: accuracy, %")
    return figure

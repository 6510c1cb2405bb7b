"""The page: collects the data of the sections and fills the template."""

from pathlib import Path
from typing import Any

from safetensors import safe_open

from rst.checkpoints.checkpoint import Checkpoint, open_checkpoint
from rst.delta.sparse_delta import SparseDelta
from rst.operations.convert import convert
from rst.operations.merge import rehearse
from rst.report.density_by_depth import depth_chart, stacks
from rst.report.density_by_layer import layer_chart, lowest_decade
from rst.report.provenance import provenance
from rst.report.residual_histogram import histogram_chart, is_drawn, residual_histogram, rows
from rst.report.sizes import sizes
from rst.report.template import load_template
from rst.report.tensors import tensor_records
from rst.report.threshold import threshold_of


def render(path: Path, base: Path | None = None) -> str:
    """Describe a delta file as one HTML page that needs no network and runs no script.

    Args:
        path: the delta.
        base: the weights it was made from, a file or folder (see `open_checkpoint`). With them, the page also shows
            unchanged parameters, and residuals of deltas whose op is not "add".

    Raises:
        CheckpointError: a missing file, or an unreadable base.
        DeltaFormatError: the delta is damaged.
        ParameterMismatchError: the base does not fit.
        WrongBaseError: the base is not the delta's.
    """
    delta = SparseDelta.load(path)
    weights = _checked(delta, base)
    with safe_open(path, framework="pt") as file:
        metadata: dict[str, str] = file.metadata()
    return load_template("page.html").render(**_contents(path, metadata, delta, weights))


def _checked(delta: SparseDelta, base: Path | None) -> Checkpoint | None:
    if base is None:
        return None
    rehearse(base, delta)
    return open_checkpoint(base).named_as([*delta, *delta.dense])


def _contents(path: Path, metadata: dict[str, str], delta: SparseDelta, base: Checkpoint | None) -> dict[str, Any]:
    tensors = tensor_records(delta, base)
    towers = stacks(tensors)
    densest = max((block.density for stack in towers for block in stack.blocks), default=0.0)
    threshold = threshold_of(delta.config)
    residuals = delta if base is None else convert(delta, op="add", base=base)
    histogram = residual_histogram(residuals, threshold.tau)
    return {
        "name": path.name,
        "delta": delta,
        "file_bytes": path.stat().st_size,
        "dsp": delta.dsp(),
        "has_base": base is not None,
        "tensors": tensors,
        "lowest": lowest_decade(tensors),
        "layers": layer_chart(tensors) if tensors else None,
        "stacks": [(stack, depth_chart(stack, densest)) for stack in towers],
        "threshold": threshold,
        "histogram": histogram,
        "histogram_chart": histogram_chart(histogram, threshold.tau) if histogram.counts else None,
        "histogram_rows": rows(histogram),
        "tau_is_drawn": is_drawn(histogram, threshold.tau),
        "sizes": sizes(delta, path.stat().st_size, metadata["encoding"], base),
        "provenance": provenance(path, metadata, delta),
    }

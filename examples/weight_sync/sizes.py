"""The cost of one step by other means: all weights, compressed, XOR with the step before, int32 positions, values."""

import shutil
import subprocess
from dataclasses import asdict, dataclass

import numpy as np
from torch import Tensor

from rst.sync import Published

State = dict[str, Tensor]
_INDEX, _VALUE = 4, 2  # bytes of an int32 and a bfloat16


@dataclass(frozen=True)
class StepSizes:
    """Bytes of one step; zstd's are 0 where the program is not installed."""

    changed: int
    weights: int
    packed_delta: int
    full: int
    full_zstd: int
    xor_zstd: int
    absolute: int


def measure(published: Published, before: np.ndarray, after: np.ndarray) -> StepSizes:
    """Sizes of one step from `before` to `after`, the bytes of all weights."""
    return StepSizes(
        changed=published.changed,
        weights=published.weights,
        packed_delta=published.delta_bytes,
        full=after.nbytes,
        full_zstd=_zstd(after),
        xor_zstd=_zstd(before ^ after),
        absolute=published.changed * (_INDEX + _VALUE),
    )


def as_bytes(state: State) -> np.ndarray:
    """All weights end to end, a copy, uint8; the two bytes of the numbers in planes, high and low, which zstd likes."""
    import torch

    flat = torch.cat([weight.detach().reshape(-1) for weight in state.values()]).view(torch.uint8).numpy()
    return np.ascontiguousarray(flat.reshape(-1, _VALUE).T).reshape(-1)


def table(steps: list[StepSizes]) -> str:
    """Mean bytes of a step and of a changed weight, as Markdown."""
    mean = {field: sum(asdict(step)[field] for step in steps) / len(steps) for field in asdict(steps[0])}
    rows = {
        "full checkpoint, bf16": mean["full"],
        "zstd -3 of the full checkpoint": mean["full_zstd"],
        "XOR with the step before, zstd -3": mean["xor_zstd"],
        "absolute: int32 + bf16": mean["absolute"],
        "rst, packed (as published)": mean["packed_delta"],
    }
    lines = ["| a step as | bytes | of the full | bytes a changed weight |", "|---|---:|---:|---:|"]
    for label, size in rows.items():
        share, each = size / mean["full"], size / max(mean["changed"], 1)
        lines.append(f"| {label} | {size:,.0f} | {share:.2%} | {each:.2f} |" if size else f"| {label} | — | — | — |")
    return "\n".join(lines)


def _zstd(data: np.ndarray) -> int:
    if shutil.which("zstd") is None:
        return 0
    return len(subprocess.run(["zstd", "-3", "-c", "-q"], input=data.tobytes(), capture_output=True, check=True).stdout)

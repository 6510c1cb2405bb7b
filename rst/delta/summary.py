"""A delta as a table in plain text."""

from rst.delta.sparse_delta import SparseDelta


def summarize(delta: SparseDelta) -> str:
    """One line a tensor (changed weights, total, density, bytes), and a last line with the totals and the DSP."""
    rows = [("tensor", "changed", "of", "density", "bytes")]
    for name, change in delta.parameters.items():
        rows.append((name, f"{change.nnz:,}", f"{change.numel:,}", f"{change.density:.4%}", f"{change.nbytes:,}"))
    for name, tensor in delta.dense.items():
        rows.append((name, f"{tensor.numel():,}", f"{tensor.numel():,}", "whole", f"{tensor.nbytes:,}"))
    weights = f"{delta.base.weights:,}" if delta.base.weights else "?"
    rows.append(("total", f"{delta.nnz:,}", weights, f"{delta.density:.4%}", f"{delta.nbytes:,}"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(_align(row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, f"downstream parameters (DSP): {delta.dsp():,}"])


def _align(row: tuple[str, ...], widths: list[int]) -> list[str]:
    name, *numbers = row
    return [name.ljust(widths[0]), *(number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True))]

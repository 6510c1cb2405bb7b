"""`rst diff`: where two deltas overlap and whether they agree, before you combine them."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rst.cli.allow_class import AllowClass
from rst.cli.console import human_size, print_json, print_table, say
from rst.cli.hub_ids import local_delta, local_weights

if TYPE_CHECKING:
    from rst.delta.sparse_delta import SparseDelta
    from rst.operations.compare import Comparison, Overlap

EXAMPLE = "Example: [bold]rst diff a.safetensors b.safetensors --limit 5[/bold]"
_COLUMNS = ("tensor", "in A", "in B", "shared", "Jaccard", "same", "opposed", "cosine")


def diff(
    first: Annotated[Path, typer.Argument(metavar="A", help="A delta.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another delta of the same model.")],
    base: Annotated[
        Path | None,
        typer.Option(
            "--base", "-b", help="Weights that both were made from; needed for the angle of tuned values or steps."
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=0, help="Show the N tensors that share the most weights.")
    ] = 20,
    show_all: Annotated[bool, typer.Option("--all", help="Show all tensors.")] = False,
    allow_class: AllowClass = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, with all tensors.")] = False,
) -> None:
    """Compare deltas A and B: where both change a weight, whether they agree there, and the angle between them."""
    from rst.delta.file import delta_file, load_delta
    from rst.operations.compare import compare

    first, second = local_delta(first), local_delta(second)
    deltas = load_delta(first), load_delta(second)
    first, second = delta_file(first), delta_file(second)
    found = compare(*deltas, base=local_weights(base) if base else None)
    if as_json:
        print_json(_record((first, second), deltas, found))
        return
    for label, text in _heading((first, second), deltas, found, base):
        say(f"{label:<10}{text}")
    ordered = sorted(found.parameters.items(), key=lambda item: (-item[1].shared, -item[1].union, item[0]))
    shown = ordered if show_all else ordered[:limit]
    print_table(_COLUMNS, [_row(name, overlap) for name, overlap in shown])
    if hidden := len(ordered) - len(shown):
        say(f"and {hidden:,} tensors that share less (--all shows them)")


def _record(
    paths: tuple[Path, Path], deltas: tuple["SparseDelta", "SparseDelta"], found: "Comparison"
) -> dict[str, Any]:
    described = [
        {
            "delta": str(path),
            "file_bytes": path.stat().st_size,
            "op": delta.op,
            "base": delta.base.name,
            "revision": delta.base.revision,
            "changed": delta.nnz,
            "dsp": delta.dsp(),
        }
        for path, delta in zip(paths, deltas, strict=True)
    ]
    return {
        "a": described[0],
        "b": described[1],
        "total": _numbers(found.total),
        "whole": dict(found.whole),
        "tensors": {name: _numbers(overlap) for name, overlap in found.parameters.items()},
    }


def _numbers(overlap: "Overlap") -> dict[str, Any]:
    return {**asdict(overlap), "union": overlap.union, "jaccard": overlap.jaccard}


def _heading(
    paths: tuple[Path, Path],
    deltas: tuple["SparseDelta", "SparseDelta"],
    found: "Comparison",
    base: Path | None,
) -> list[tuple[str, str]]:
    total = found.total
    lines = [_file_line(label, path, delta) for label, path, delta in zip("AB", paths, deltas, strict=True)]
    lines.append(("bases", _bases(found)))
    share = f" (Jaccard {total.jaccard:.3g})" if total.jaccard is not None else ""
    lines.append(("shared", f"{total.shared:,} of {total.union:,} positions that either changes{share}"))
    lines.append(("same", _part(total.same, total.shared, "lead to the same value, bit for bit")))
    lines.append(("opposed", _part(total.opposed, total.shared, "move in opposite directions")))
    lines.append(("cosine", _cosine(total.cosine)))
    if found.whole:
        lines.append(("whole", "; ".join(f"{name}: {agreement}" for name, agreement in found.whole.items())))
    if base is None and total.opposed is None:
        lines.append(("hint", "pass the base weights with --base to compute what is unknown"))
    lines.append(("next", _next(paths, deltas, found)))
    return lines


def _file_line(label: str, path: Path, delta: "SparseDelta") -> tuple[str, str]:
    based = f" of {delta.base.name}" if delta.base.name else ""
    return label, f"{path} ({human_size(path.stat().st_size)}), {delta.nnz:,} weights{based}, op {delta.op}"


def _bases(found: "Comparison") -> str:
    if found.total.same_base is None:
        return "unknown, because the deltas have no digests in common"
    if found.total.same_base:
        return "the same, by the digests of all parameters that both change"
    different = [name for name, overlap in found.parameters.items() if overlap.same_base is False]
    more = f" and {len(different) - 1} more" if len(different) > 1 else ""
    return f"different: {different[0]}{more}"


def _part(count: int | None, of: int, what: str) -> str:
    if count is None:
        return "unknown"
    share = f" ({count / of:.1%})" if of else ""
    return f"{count:,} of the shared{share} {what}"


def _cosine(cosine: float | None) -> str:
    return "unknown or undefined" if cosine is None else f"{cosine:.4f}"


def _next(paths: tuple[Path, Path], deltas: tuple["SparseDelta", "SparseDelta"], found: "Comparison") -> str:
    """Return the command that combines them, with its options, or why there is none."""
    if found.total.same_base is False:
        return "deltas of different bases cannot be combined"
    for path, delta in zip(paths, deltas, strict=True):
        if delta.op != "add":
            return f"combining needs residuals: rst convert {path} ADD.safetensors --op add --base BASE"
    sparse_only = " --sparse-only" if any(agreement != "same" for agreement in found.whole.values()) else ""
    return f"rst combine {paths[0]} {paths[1]} --weights 0.5 0.5{sparse_only} -o both.safetensors"


def _row(name: str, overlap: "Overlap") -> tuple[str, ...]:
    jaccard = "-" if overlap.jaccard is None else f"{overlap.jaccard:.3f}"
    cosine = "-" if overlap.cosine is None else f"{overlap.cosine:.3f}"
    counts = (overlap.first, overlap.second, overlap.shared)
    same, opposed = ("?" if count is None else f"{count:,}" for count in (overlap.same, overlap.opposed))
    return (name, *(f"{count:,}" for count in counts), jaccard, same, opposed, cosine)

"""`rst inspect`: what a delta is, what it was made from, and where its weights lie."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rst.cli.console import human_size, print_json, print_table, printable

if TYPE_CHECKING:
    from rst.delta import SparseDelta

EXAMPLE = "Example: [bold]rst inspect model.delta.safetensors --limit 5[/bold]"
_FILE_FIELDS = ("format_version", "encoding", "op", "library_version")


def inspect(
    delta: Annotated[Path, typer.Argument(metavar="DELTA", help="The delta to look into.")],
    limit: Annotated[int, typer.Option("--limit", "-n", min=0, help="Show the biggest N tensors.")] = 20,
    show_all: Annotated[bool, typer.Option("--all", help="Show all tensors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, with all tensors.")] = False,
) -> None:
    """Show a delta's base, settings and versions, and per tensor the density, DSP and bytes (unpacked)."""
    from rst.delta import SparseDelta

    record = _record(delta, SparseDelta.load(delta))
    if as_json:
        print_json(record)
        return
    for label, text in _heading(record):
        print(f"{label:<12}{printable(text)}")
    tensors = record["tensors"]
    shown = tensors if show_all else tensors[:limit]
    print_table(("tensor", "shape", "dtype", "DSP", "of", "density", "bytes"), [_row(tensor) for tensor in shown])
    if hidden := len(tensors) - len(shown):
        print(f"and {hidden:,} smaller tensors (--all shows them)")


def _record(path: Path, delta: "SparseDelta") -> dict[str, Any]:
    return {
        "delta": str(path),
        "file_bytes": path.stat().st_size,
        **_file_fields(path),
        "base": {
            "name": delta.base.name,
            "revision": delta.base.revision,
            "weights": delta.base.weights,
            "fingerprint": delta.fingerprint(),
        },
        "config": dict(delta.config),
        "changed": delta.nnz,
        "density": delta.density,
        "dsp": delta.dsp(),
        "bytes": delta.nbytes,
        "tied": dict(delta.tied),
        "tensors": sorted(_tensors(delta), key=lambda tensor: (-tensor["bytes"], tensor["name"])),
    }


def _file_fields(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    return {field: metadata[field] for field in _FILE_FIELDS}


def _tensors(delta: "SparseDelta") -> list[dict[str, Any]]:
    sparse = [
        {
            "name": name,
            "kind": "sparse",
            "shape": list(change.shape),
            "dtype": _dtype_name(change.dtype),
            "dsp": change.nnz,
            "of": change.numel,
            "density": change.density,
            "overlay": change.exact_indices.numel(),
            "bytes": change.nbytes,
        }
        for name, change in delta.items()
    ]
    whole = [
        {
            "name": name,
            "kind": "buffer" if name in delta.buffers else "whole",
            "shape": list(tensor.shape),
            "dtype": _dtype_name(tensor.dtype),
            "dsp": 0 if name in delta.buffers else tensor.numel(),
            "of": tensor.numel(),
            "density": 1.0,
            "overlay": 0,
            "bytes": tensor.nbytes,
        }
        for name, tensor in delta.dense.items()
    ]
    return sparse + whole


def _dtype_name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def _heading(record: dict[str, Any]) -> list[tuple[str, str]]:
    base = record["base"]
    revision = f" at {base['revision']}" if base["revision"] else ""
    config = ", ".join(f"{name}={value!r}" for name, value in record["config"].items())
    encoding = f"encoding {record['encoding']}, op {record['op']}, rst {record['library_version']}"
    return [
        ("file", f"{record['delta']} ({human_size(record['file_bytes'])})"),
        ("format", f"version {record['format_version']}, {encoding}"),
        ("base", f"{base['name'] or 'unnamed'}{revision}, {base['weights']:,} weights compared"),
        ("fingerprint", base["fingerprint"] or "unknown"),
        ("config", config or "every changed bit"),
        ("changed", f"{record['changed']:,} weights ({record['density']:.4%})"),
        ("DSP", f"{record['dsp']:,}"),
    ]


def _row(tensor: dict[str, Any]) -> tuple[str, ...]:
    density = f"{tensor['density']:.4%}" if tensor["kind"] == "sparse" else tensor["kind"]
    shape = "x".join(map(str, tensor["shape"])) or "scalar"
    return (
        tensor["name"],
        shape,
        tensor["dtype"],
        f"{tensor['dsp']:,}",
        f"{tensor['of']:,}",
        density,
        f"{tensor['bytes']:,}",
    )

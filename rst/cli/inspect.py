"""`rst inspect`: what a delta contains, what it was made from, and where its changed weights are."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rst.cli.console import human_size, print_json, print_table, say
from rst.cli.hub_ids import local_delta, local_weights
from rst.cli.output_paths import check_output
from rst.errors import ConfigError

if TYPE_CHECKING:
    from rst.delta.sparse_delta import SparseDelta

EXAMPLE = (
    "Example: [bold]rst inspect model.delta.safetensors --limit 5[/bold], or "
    "[bold]rst inspect model.delta.safetensors --html report.html[/bold]"
)
_FILE_FIELDS = ("format_version", "encoding", "op", "library_version")


def inspect(
    delta: Annotated[Path, typer.Argument(metavar="DELTA", help="The delta to inspect.")],
    limit: Annotated[int, typer.Option("--limit", "-n", min=0, help="Show the N largest tensors.")] = 20,
    show_all: Annotated[bool, typer.Option("--all", help="Show all tensors.")] = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a page with charts to one file that needs no network.")
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            "--base",
            "-b",
            help="With --html: weights that DELTA was made from, to show residuals of any op and the bytes saved.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing page (never an input).")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, with all tensors.")] = False,
) -> None:
    """Show a delta's base, settings and versions, and the density, DSP and bytes of each tensor.

    DSP, downstream parameters, counts the changed weights and all weights of modules stored whole, but no buffers.

    Bytes are those in memory; the file's own size, which the encoding decides, stands in the first line.
    """
    from rst.delta.file import delta_file, load_delta

    place = local_delta(delta)
    change, delta = load_delta(place), delta_file(place)
    if html:
        _write_page(html, delta, local_weights(base) if base else None, force)
    elif base or force:
        raise ConfigError("--base and --force apply to the HTML page only; name the page with --html report.html")
    record = _record(delta, change) | ({"html": str(html)} if html else {})
    if as_json:
        print_json(record)
    elif html:
        say(f"wrote {html} ({human_size(html.stat().st_size)}); open it in a browser")
    else:
        _print(record, len(record["tensors"]) if show_all else limit)


def _write_page(page: Path, delta: Path, base: Path | None, force: bool) -> None:
    from rst.checkpoints.checkpoint import checkpoint_files
    from rst.files.atomic import atomic_write
    from rst.report.page import render

    check_output(page, [delta, *(checkpoint_files(base) if base else ())], force)
    text = render(delta, base)
    with atomic_write(page) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _record(path: Path, delta: "SparseDelta") -> dict[str, Any]:
    from rst.report.tensors import tensor_records

    tensors = sorted(tensor_records(delta), key=lambda tensor: (-tensor.bytes, tensor.name))
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
        "tensors": [asdict(tensor) for tensor in tensors],
    }


def _file_fields(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    return {field: metadata[field] for field in _FILE_FIELDS}


def _print(record: dict[str, Any], limit: int) -> None:
    for label, text in _heading(record):
        say(f"{label:<12}{text}")
    tensors = record["tensors"]
    print_table(
        ("tensor", "shape", "dtype", "DSP", "of", "density", "bytes"), [_row(tensor) for tensor in tensors[:limit]]
    )
    if len(tensors) > limit:
        say(f"and {len(tensors) - limit:,} smaller tensors (--all shows them)")


def _heading(record: dict[str, Any]) -> list[tuple[str, str]]:
    from rst.delta.sparse_delta import dsp_in_words

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
        ("DSP", dsp_in_words(record["dsp"], record["changed"])),
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

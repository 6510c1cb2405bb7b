"""The model card of an adapter: front matter for the hub, and a summary for readers."""

from rst.delta.sparse_delta import SparseDelta
from rst.printable import markdown_code, yaml_string
from rst.version import __version__

_LONGEST_TABLE = 20


def model_card(delta: SparseDelta, file_bytes: int) -> str:
    """Return Markdown: the hub's front matter (`library_name`, `base_model`, tags), a density table and an example."""
    return "\n".join([*_front_matter(delta), "", *_text(delta, file_bytes), "", *_table(delta), ""])


def _front_matter(delta: SparseDelta) -> list[str]:
    lines = ["---", "library_name: rst"]
    if delta.base.name:
        lines += [f"base_model: {yaml_string(delta.base.name)}", "base_model_relation: adapter"]
    return [*lines, "tags:", "- rst", "- residual-sparse-training", "- adapter", "---"]


def _text(delta: SparseDelta, file_bytes: int) -> list[str]:
    base = markdown_code(delta.base.name or "the base model")
    revision = f" at revision {markdown_code(delta.base.revision)}" if delta.base.revision else ""
    threshold = delta.config.get("threshold")
    kept = f"changes larger than {threshold:g}" if isinstance(threshold, float) else "the selected changes"
    whole = f", and {len(delta.dense)} tensors stored whole" if delta.dense else ""
    return [
        "# Sparse residual adapter",
        "",
        f"{delta.nnz:,} of {delta.base.weights:,} weights ({delta.density:.3%}) of {base}{revision} changed{whole}; "
        f"{file_bytes:,} bytes. Trained with Residual Sparse Training, which keeps {kept} and puts every other weight "
        "back. Added to the base it gives the tuned model bit for bit.",
        "",
        "```python",
        "from rst import RSTModel",
        "",
        'model = RSTModel.from_pretrained(base_model, "this folder or hub id")',
        "model = model.merge_and_unload()  # or keep it, and switch adapters",
        "```",
        "",
        f"Written by rst {__version__}.",
    ]


def _table(delta: SparseDelta) -> list[str]:
    largest = sorted(delta.parameters.items(), key=lambda item: -item[1].nnz)
    rows = [
        f"| {markdown_code(name)} | {change.nnz:,} | {change.numel:,} | {change.nnz / max(change.numel, 1):.3%} |"
        for name, change in largest[:_LONGEST_TABLE]
    ]
    rest = len(largest) - _LONGEST_TABLE
    tail = [f"\nand {rest} more parameters."] if rest > 0 else []
    return ["| parameter | changed | of | density |", "|---|---|---|---|", *rows, *tail]

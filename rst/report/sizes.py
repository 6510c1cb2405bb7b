"""The size of the file compared with other formats: measured where it is written, computed where not."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

from rst.checkpoints.checkpoint import Checkpoint
from rst.delta.sparse_delta import Encoding, SparseDelta

_INT32, _INT64 = 4, 8


@dataclass(frozen=True)
class Size:
    """One way to store the change.

    Attributes:
        label: what is stored.
        bytes: its size.
        basis: "measured", or "computed" with its basis.
        is_file: whether this is the file itself.
    """

    label: str
    bytes: int
    basis: str
    is_file: bool = False


def sizes(delta: SparseDelta, file_bytes: int, encoding: str, base: Checkpoint | None) -> list[Size]:
    """List this file, its other encoding, index-and-value formats, and a whole checkpoint."""
    whole = sum(tensor.nbytes for tensor in delta.dense.values())
    pairs = sum(change.nnz * (2 * _INT32 + change.dtype.itemsize) for change in delta.values())
    coordinates = sum(change.nnz * (len(change.shape) * _INT64 + change.dtype.itemsize) for change in delta.values())
    others = [
        Size(f"The same delta, encoding {other}", _saved_bytes(delta, other), "measured: written to a temporary file")
        for other in get_args(Encoding)
        if other != encoding
    ]
    return [
        Size(f"This file, encoding {encoding}", file_bytes, "measured", is_file=True),
        *others,
        Size(
            "Two int32 positions and a value each, as SHiRA",
            pairs + whole,
            "computed: 8 bytes and the value for each changed weight, without headers",
        ),
        Size(
            "torch.save of sparse COO tensors",
            coordinates + whole,
            "computed: one int64 for each dimension and the value, without headers",
        ),
        _full_checkpoint(delta, whole, base),
    ]


def _saved_bytes(delta: SparseDelta, encoding: Encoding) -> int:
    with TemporaryDirectory(prefix="rst-report-") as folder:
        path = Path(folder) / "delta.safetensors"
        delta.save(path, encoding)
        return path.stat().st_size


def _full_checkpoint(delta: SparseDelta, whole: int, base: Checkpoint | None) -> Size:
    label = "The whole tuned checkpoint"
    if base is not None:
        replaced = {*delta.dense, *delta.tied, *base.tied}
        kept = sum(base[name].nbytes for name in base if name not in replaced)
        return Size(label, kept + whole, "computed: the base's tensors, and those stored whole")
    touched: Counter[int] = Counter()
    for change in delta.values():
        touched[change.dtype.itemsize] += change.numel
    usual = touched.most_common(1)[0][0] if touched else _INT32
    others = max(delta.base.weights - sum(touched.values()), 0)
    total = sum(width * count for width, count in touched.items()) + others * usual + whole
    return Size(label, total, f"computed: all weights compared, those left alone at {usual} bytes each")

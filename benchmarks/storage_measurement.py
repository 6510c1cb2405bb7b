"""All sizes of one pair of checkpoints: every layout, every file of this library, and the bounds."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.checkpoint_pair import CheckpointPair, Counts
from benchmarks.entropy import position_bits, step_bits, step_bits_given_base
from benchmarks.external_tools import NotInstalledError
from benchmarks.file_parts import FileParts, file_parts
from benchmarks.layouts import LAYOUTS
from benchmarks.record import Row
from rst import SparseDelta, convert, export, merge
from rst.delta.parameter_delta import Op
from rst.delta.sparse_delta import Encoding
from rst.numerics.exactness import bit_equal


@dataclass(frozen=True)
class DeltaFile:
    """One of this library's forms of a delta."""

    encoding: Encoding
    op: Op

    @property
    def name(self) -> str:
        """The column's name."""
        return f"rst {self.encoding} {self.op}"


FILES = (
    DeltaFile("coo", "add"),
    DeltaFile("packed", "add"),
    DeltaFile("packed", "replace"),
    DeltaFile("packed", "step"),
)


@dataclass(frozen=True)
class PartBits:
    """Bits for each changed weight, by part of the file."""

    positions: float
    values: float
    metadata: float


@dataclass(frozen=True)
class Measurement:
    """One pair and its sizes.

    Attributes:
        counts: of the pair.
        sizes: bytes by layout, or why there is no file.
        parts: bytes by part, of this library's files.
        positions, steps, steps_given_base: entropies in bits a changed weight, where known.
    """

    counts: Counts
    sizes: dict[str, int | str]
    parts: dict[str, FileParts]
    positions: float
    steps: float | None
    steps_given_base: float | None

    @property
    def bound(self) -> float | None:
        """Bits a changed weight takes at least, where known."""
        return None if self.steps_given_base is None else self.positions + self.steps_given_base

    def bits(self, name: str) -> float:
        """Bits a changed weight, of a file that was written."""
        size = self.sizes[name]
        assert isinstance(size, int)
        return 8 * size / self.counts.changed

    def part_bits(self, name: str) -> PartBits:
        """Bits a changed weight by part, of one of this library's files."""
        parts, changed = self.parts[name], self.counts.changed
        return PartBits(8 * parts.positions / changed, 8 * parts.values / changed, 8 * parts.metadata / changed)

    def header_bytes_a_tensor(self) -> float:
        """Metadata of the coo file for each tensor that changed."""
        return self.parts[FILES[0].name].metadata / self.counts.tensors

    def row(self) -> Row:
        """Bits by layout."""
        found = {
            name: size if isinstance(size, str) else round(self.bits(name), 2) for name, size in self.sizes.items()
        }
        return Row(self.counts.name, {**self._leading(), "bound": _rounded(self.bound), **found})

    def parts_row(self) -> Row:
        """Bits by part, beside the entropies."""
        coo, add, replace, step = (self.part_bits(file.name) for file in FILES)
        numbers = {
            "positions: bound": self.positions,
            "positions: packed": step.positions,
            "steps, blind": self.steps,
            "steps, given w0": self.steps_given_base,
            "values: packed step": step.values,
            "values: packed add": add.values,
            "values: packed replace": replace.values,
            "metadata: packed": step.metadata,
            "metadata: coo": coo.metadata,
        }
        return Row(self.counts.name, {**self._leading(), **{name: _rounded(bits) for name, bits in numbers.items()}})

    def _leading(self) -> dict[str, int | float]:
        changed, weights = self.counts.changed, self.counts.weights
        return {"weights": weights, "changed": changed, "changed %": round(100 * changed / weights, 3)}


def measure(pair: CheckpointPair, scratch: Path) -> Measurement:
    """Write every file, check what can be read back, and weigh it."""
    sizes: dict[str, int | str] = {}
    for name, store in LAYOUTS.items():
        path = scratch / "layout"
        try:
            store(pair, path)
            sizes[name] = path.stat().st_size
        except NotInstalledError as reason:
            sizes[name] = str(reason)
    delta, parts = export(pair.base, pair.tuned), {}
    for file in FILES:
        path = scratch / "delta.safetensors"
        convert(delta, op=file.op, base=pair.base).save(path, encoding=file.encoding)
        _check(pair, path)
        parts[file.name] = file_parts(path)
        sizes[file.name] = path.stat().st_size
    entropies = position_bits(pair), step_bits(pair), step_bits_given_base(pair)
    return Measurement(pair.counts(), sizes, parts, *entropies)


def _check(pair: CheckpointPair, path: Path) -> None:
    merged = merge(pair.base, SparseDelta.load(path))
    for name, tuned in pair.tuned.items():
        assert bit_equal(merged[name], tuned), f"{pair.name}: {name} is not what it was"


def _rounded(bits: float | None) -> float | None:
    return None if bits is None else round(bits, 2)

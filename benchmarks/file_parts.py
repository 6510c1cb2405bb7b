"""The parts of a delta file in bytes: positions, values, and all that describes them."""

import json
from dataclasses import dataclass
from pathlib import Path

_POSITIONS = ("indices", "gaps")
_DESCRIPTIONS = ("records",)


@dataclass(frozen=True)
class FileParts:
    """Bytes of a `delta.safetensors`; they sum to its size."""

    positions: int
    values: int
    metadata: int

    @property
    def total(self) -> int:
        """Size of the file."""
        return self.positions + self.values + self.metadata


def file_parts(path: Path) -> FileParts:
    """Read the header. Overlays count as positions and values; the header, records and padding as metadata."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    positions = values = 0
    for name, array in header.items():
        if name == "__metadata__" or name.endswith(_DESCRIPTIONS):
            continue
        start, end = array["data_offsets"]
        if name.endswith(_POSITIONS):
            positions += end - start
        else:
            values += end - start
    return FileParts(positions, values, path.stat().st_size - positions - values)

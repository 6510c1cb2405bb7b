"""PACS: photo, art painting, cartoon and sketch of seven classes, 12 tasks, at 128 pixels in one archive per domain."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from examples.uda.benchmarks.benchmark import Benchmark, Role, Split
from examples.uda.benchmarks.domain_dataset import DomainDataset

COUNTS = {"P": 1_670, "A": 2_048, "C": 2_344, "S": 3_929}
"""Images of each domain, 9,991 in all (Li et al., ICCV 2017)."""

KEYS = ("jpeg", "offset", "y")
FOLDER = "pacs128"


class EncodedImages(DomainDataset):
    """JPEG files one after another in memory, opened when asked for: a fifteenth of the pixels' size."""

    def __init__(
        self,
        jpeg: np.ndarray[Any, Any],
        offsets: np.ndarray[Any, Any],
        labels: Sequence[int],
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        """Take the bytes (uint8), where each file starts and the last one ends (N + 1), and N labels."""
        super().__init__(labels, transform)
        self.jpeg = jpeg
        self.offsets = offsets

    def image(self, index: int) -> Image.Image:
        """Decode one image to RGB."""
        start, end = self.offsets[index], self.offsets[index + 1]
        return Image.open(io.BytesIO(self.jpeg[start:end].tobytes())).convert("RGB")


@dataclass(frozen=True, eq=False, kw_only=True)
class Pacs(Benchmark):
    """PACS (Li et al., ICCV 2017). Train and test are both the whole domain, as in Office-Home."""

    def problems(self, root: Path, domain: str, *, counts: bool) -> list[str]:
        """What is wrong with one domain's archive, a sentence each; empty if nothing is."""
        path = self._archive(root, domain)
        if not path.is_file():
            return [f"{path} is missing"]
        with np.load(path) as archive:
            missing = [key for key in KEYS if key not in archive.files]
            if missing:
                return [f"{path.name} has no array {', '.join(missing)}"]
            labels, offsets, size = archive["y"], archive["offset"], len(archive["jpeg"])
        found = []
        if len(offsets) != len(labels) + 1 or int(offsets[-1]) != size:
            found.append(f"{path.name} has {len(offsets)} offsets to {size} bytes for {len(labels)} labels")
        if set(labels.tolist()) != set(range(len(self.classes))):
            found.append(
                f"{path.name} has labels {sorted(set(labels.tolist()))}, 0 to {len(self.classes) - 1} expected"
            )
        if counts and len(labels) != COUNTS[domain]:
            found.append(f"{path.name} has {len(labels):,} images, {COUNTS[domain]:,} expected")
        return found

    def dataset(
        self, root: Path, domain: str, split: Split, transform: Callable[[Any], Any] | None = None, *, role: Role
    ) -> EncodedImages:
        """All images of one domain, whatever the split and role."""
        with np.load(self._archive(root, domain)) as archive:
            return EncodedImages(archive["jpeg"], archive["offset"], archive["y"].tolist(), transform)

    def _archive(self, root: Path, domain: str) -> Path:
        return root / FOLDER / f"{self.domains[domain]}.npz"


PACS = Pacs(
    name="pacs",
    title="PACS (128 px)",
    domains={"P": "photo", "A": "art_painting", "C": "cartoon", "S": "sketch"},
    tasks=tuple(permutations("PACS", 2)),
    classes=("dog", "elephant", "giraffe", "guitar", "horse", "house", "person"),
    layout="\n".join(f"  {FOLDER}/{name}.npz" for name in ("photo", "art_painting", "cartoon", "sketch")),
    download=(
        "Download PACS (227 px, a folder a class; github.com/MachineLearning2020/Homework3-PACS has all 9,991 images) "
        "and pack each domain, resized to 128 px, as an npz: jpeg, the files' bytes one after another (uint8); offset, "
        "where each starts and the last ends (int64, N + 1); y, class numbers in alphabetical order (uint8)."
    ),
)

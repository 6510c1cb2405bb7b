"""Benchmarks distributed as image folders: one folder per domain, with one folder per class."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.uda.benchmarks.benchmark import Benchmark, Role, Split
from examples.uda.benchmarks.dataset_error import listed
from examples.uda.benchmarks.domain_dataset import ImageFiles

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageFolderBenchmark(Benchmark):
    """`root/<domain folder>/<class>/<image>`; the labels follow `classes`.

    Attributes:
        images: the published number of images of each domain, and those of documented variants.
        target_classes: number of leading classes that a target has; all if left out. The others make the task
            partial-set adaptation.
    """

    images: dict[str, tuple[int, ...]]
    target_classes: int | None = None

    def problems(self, root: Path, domain: str, *, counts: bool) -> list[str]:
        """Missing folder, missing, unexpected or empty classes, and another number of images than the published."""
        folder = self.folder(root, domain)
        if not folder.is_dir():
            beside = _folders(folder.parent) if folder.parent.is_dir() else []
            return [f"folder missing; beside it: {listed(beside)}"]
        found = set(_folders(folder))
        per_class = {name: len(_image_files(folder / name)) for name in self.classes if name in found}
        lists = {
            "missing": [name for name in self.classes if name not in found],
            "unexpected": sorted(found - set(self.classes)),
            "without images": [name for name, number in per_class.items() if number == 0],
        }
        problems = [
            f"{len(names)} classes {kind} ({len(self.classes)} expected): {listed(names)}"
            for kind, names in lists.items()
            if names
        ]
        total = sum(per_class.values())
        if counts and total not in self.images[domain]:
            expected = " or ".join(f"{number:,}" for number in self.images[domain])
            problems.append(f"{expected} images expected in the {len(self.classes)} classes, {total:,} found")
        return problems

    def dataset(
        self, root: Path, domain: str, split: Split, transform: Callable[[Any], Any] | None = None, *, role: Role
    ) -> ImageFiles:
        """The whole domain, whatever the split, sorted by class and file name; see `Benchmark.dataset`."""
        classes = self.classes[: self.target_classes] if role == "target" else self.classes
        per_class = [_image_files(self.folder(root, domain) / name) for name in classes]
        paths = [path for files in per_class for path in files]
        labels = [label for label, files in enumerate(per_class) for _ in files]
        return ImageFiles(paths, labels, transform)


def _folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def _image_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)

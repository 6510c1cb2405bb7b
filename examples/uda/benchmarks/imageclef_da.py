"""ImageCLEF-DA: 12 classes shared by Caltech-256, ImageNet and Pascal VOC; 6 tasks (Table IV)."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.uda.benchmarks.benchmark import Benchmark, Role, Split
from examples.uda.benchmarks.dataset_error import listed
from examples.uda.benchmarks.domain_dataset import ImageFiles
from examples.uda.benchmarks.image_folder import ImageFolderBenchmark

IMAGES_PER_CLASS = 50


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageCLEF(Benchmark):
    """`root/<domain>/<image>` with the labels in `root/<domain>List.txt` or `root/list/<domain>List.txt`.

    Or `root/<domain>/<class>/<image>`, as some mirrors have it, without a list.
    """

    def problems(self, root: Path, domain: str, *, counts: bool) -> list[str]:
        """Missing folder, list or listed images, labels that are not the classes', and another number of images."""
        folder = self.folder(root, domain)
        if not folder.is_dir():
            return ["folder missing"]
        if _has_class_folders(folder):
            return self._class_folders().problems(root, domain, counts=counts)
        list_file = _list_file(folder)
        if not list_file.is_file():
            return [f"list file missing, neither {folder.name}List.txt nor list/{folder.name}List.txt is there"]
        try:
            paths, labels = _read_list(list_file, folder.parent)
        except ValueError as error:
            return [str(error)]
        problems = []
        absent = [str(path.relative_to(folder.parent)) for path in paths if not path.is_file()]
        if absent:
            problems.append(f"{len(absent)} of the {len(paths)} images in {list_file.name} missing: {listed(absent)}")
        per_class = Counter(labels)
        missing = [name for label, name in enumerate(self.classes) if not per_class[label]]
        unexpected = [str(label) for label in sorted(per_class) if label not in range(len(self.classes))]
        if missing:
            problems.append(f"{len(missing)} classes missing ({len(self.classes)} expected): {listed(missing)}")
        if unexpected:
            problems.append(f"{len(unexpected)} labels unexpected (0 to {len(self.classes) - 1}): {listed(unexpected)}")
        if counts and any(per_class[label] != IMAGES_PER_CLASS for label in range(len(self.classes))):
            found = ", ".join(f"{name} {per_class[label]}" for label, name in enumerate(self.classes))
            expected = IMAGES_PER_CLASS * len(self.classes)
            problems.append(f"{expected} images expected, {IMAGES_PER_CLASS} a class, {len(labels)} found: {found}")
        return problems

    def dataset(
        self, root: Path, domain: str, split: Split, transform: Callable[[Any], Any] | None = None, *, role: Role
    ) -> ImageFiles:
        """The whole domain, whatever the split, in the list's order or by class; see `Benchmark.dataset`."""
        if _has_class_folders(self.folder(root, domain)):
            return self._class_folders().dataset(root, domain, split, transform, role=role)
        paths, labels = _read_list(_list_file(self.folder(root, domain)), root)
        return ImageFiles(paths, labels, transform)

    def _class_folders(self) -> ImageFolderBenchmark:
        total = IMAGES_PER_CLASS * len(self.classes)
        return ImageFolderBenchmark(
            name=self.name,
            title=self.title,
            domains=self.domains,
            tasks=self.tasks,
            classes=self.classes,
            layout=self.layout,
            download=self.download,
            images=dict.fromkeys(self.domains, (total,)),
        )


def _has_class_folders(folder: Path) -> bool:
    return any(path.is_dir() for path in folder.iterdir())


def _list_file(folder: Path) -> Path:
    name = f"{folder.name}List.txt"
    beside = folder.parent / name
    return beside if beside.is_file() else folder.parent / "list" / name


def _read_list(list_file: Path, root: Path) -> tuple[list[Path], list[int]]:
    """Lines such as "c/113_0114.jpg 2": path under the root, and label."""
    pairs = [line.rsplit(maxsplit=1) for line in list_file.read_text().splitlines() if line.strip()]
    for number, pair in enumerate(pairs, start=1):
        if len(pair) != 2 or not pair[1].isdecimal():
            raise ValueError(f'{list_file.name}, entry {number}: must be an image and a label, got "{" ".join(pair)}"')
    return [root / name for name, _ in pairs], [int(label) for _, label in pairs]


IMAGECLEF_DA = ImageCLEF(
    name="imageclef_da",
    title="ImageCLEF-DA",
    domains={"C": "c", "I": "i", "P": "p"},
    tasks=(("I", "P"), ("I", "C"), ("P", "I"), ("P", "C"), ("C", "I"), ("C", "P")),
    classes=(
        "aeroplane",
        "bike",
        "bird",
        "boat",
        "bottle",
        "bus",
        "car",
        "dog",
        "horse",
        "monitor",
        "motorbike",
        "people",
    ),
    layout="""\
  c/*.jpg, i/*.JPEG, p/*.jpg (600 images each)
  cList.txt, iList.txt, pList.txt, or the same in list/ (a line an image: "c/113_0114.jpg 2")
  or class folders instead of lists: c/aeroplane/*.jpg, ... (12 classes of 50 images, aeroplane to people)""",
    download=(
        "Download the images and lists of the ImageCLEF 2014 domain adaptation task; its page is "
        "https://www.imageclef.org/2014/adaptation. Domain b (Bing) is not used."
    ),
)

"""Miniature copies of the benchmarks in their real layouts: learnable classes, a shift of style between domains."""

import random
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from examples.uda.benchmarks import Benchmark, ImageFolderBenchmark, get_benchmark
from examples.uda.benchmarks.digits import DigitsBenchmark
from examples.uda.benchmarks.digits_small import DigitsSmall
from examples.uda.benchmarks.digits_source_free import DigitsSourceFree
from examples.uda.benchmarks.imageclef_da import ImageCLEF
from examples.uda.benchmarks.pacs import FOLDER as PACS_FOLDER
from examples.uda.benchmarks.pacs import Pacs
from examples.uda.fake_archives import write_pacs, write_small_digits, write_svhn_network
from examples.uda.fake_digits import write_digits
from examples.uda.fake_figures import STYLES, draw_figure
from examples.uda.svhn_cnn import WEIGHTS


class FakeDomains:
    """Writes miniature benchmarks that `Benchmark.check(root, counts=False)` accepts.

    Every class is a drawn figure of its own shape, colour and texture (a digit for the digits), every domain a style
    of its own. They show that a pipeline runs and learns; no accuracy on them says anything about the real sets.

        FakeDomains(images_per_class=4).write("office31", root)
    """

    def __init__(self, *, images_per_class: int = 2, image_size: int = 32, seed: int = 0) -> None:
        """Fix what is written: the same arguments give the same files.

        Args:
            images_per_class: images of each class and domain; the digits have as many in both splits.
            image_size: side of the images, in pixels; the digits keep their own.
            seed: of places, scales, tilts and noise.

        Raises:
            ValueError: if there would be no image.
        """
        if images_per_class < 1 or image_size < 1:
            raise ValueError(
                f"images_per_class and image_size must be positive, got {images_per_class} and {image_size}"
            )
        self.images_per_class = images_per_class
        self.image_size = image_size
        self.seed = seed

    def write(self, name: str, root: Path, domains: Iterable[str] | None = None) -> None:
        """Write a benchmark's domains (abbreviations; all if left out) under `root`.

        Raises:
            ValueError: if the benchmark or a domain is unknown.
        """
        benchmark = get_benchmark(name)
        for domain in benchmark.domains if domains is None else domains:
            folder = benchmark.folder(root, domain)
            if isinstance(benchmark, ImageFolderBenchmark):
                self._write_class_folders(benchmark, domain, folder)
            elif isinstance(benchmark, ImageCLEF):
                self._write_list(benchmark, domain, folder)
            elif isinstance(benchmark, Pacs):
                self._write_pacs(benchmark, domain, root)
            elif isinstance(benchmark, DigitsBenchmark):
                write_digits(domain, folder, self.images_per_class, self._chance(name, domain))
            elif isinstance(benchmark, DigitsSourceFree) and domain == "S":
                write_svhn_network(root / WEIGHTS, self._chance(name, domain))
            elif isinstance(benchmark, DigitsSmall):
                write_small_digits(domain, folder, self.images_per_class, self._chance(name, domain))

    def _write_class_folders(self, benchmark: Benchmark, domain: str, folder: Path) -> None:
        for label, name in enumerate(benchmark.classes):
            (folder / name).mkdir(parents=True, exist_ok=True)
            for number, image in enumerate(self._images(benchmark, domain, label)):
                image.save(folder / name / f"{number:05}.jpg")

    def _write_list(self, benchmark: Benchmark, domain: str, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        lines = []
        for label in range(len(benchmark.classes)):
            for number, image in enumerate(self._images(benchmark, domain, label)):
                path = folder / f"{label:03}_{number:04}.jpg"
                image.save(path)
                lines.append(f"{folder.name}/{path.name} {label}\n")
        (folder.parent / f"{folder.name}List.txt").write_text("".join(lines))

    def _write_pacs(self, benchmark: Benchmark, domain: str, root: Path) -> None:
        labels = [label for label in range(len(benchmark.classes)) for _ in range(self.images_per_class)]
        images = [image for label in range(len(benchmark.classes)) for image in self._images(benchmark, domain, label)]
        write_pacs(root / PACS_FOLDER / f"{benchmark.domains[domain]}.npz", images, labels)

    def _images(self, benchmark: Benchmark, domain: str, label: int) -> list[Image.Image]:
        style = STYLES[list(benchmark.domains).index(domain)]
        chance = self._chance(benchmark.name, domain, str(label))
        return [draw_figure(label, style, chance, self.image_size) for _ in range(self.images_per_class)]

    def _chance(self, *names: str) -> random.Random:
        return random.Random("/".join((str(self.seed), *names)))  # a string seeds the same in every process

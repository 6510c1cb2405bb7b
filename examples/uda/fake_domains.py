"""Miniature copies of the benchmarks in their real layouts: learnable classes, a shift of style between domains."""

import random
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from examples.uda.benchmarks import Benchmark, ImageFolderBenchmark, get_benchmark
from examples.uda.benchmarks.digits import DigitsBenchmark
from examples.uda.benchmarks.imageclef_da import ImageCLEF
from examples.uda.fake_digits import write_digits
from examples.uda.fake_figures import STYLES, draw_figure


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
            ValueError: if the benchmark is unknown or has no miniature, or a domain is unknown.
        """
        benchmark = get_benchmark(name)
        for domain in benchmark.domains if domains is None else domains:
            folder = benchmark.folder(root, domain)
            folder.mkdir(parents=True, exist_ok=True)
            if isinstance(benchmark, ImageFolderBenchmark):
                self._write_class_folders(benchmark, domain, folder)
            elif isinstance(benchmark, ImageCLEF):
                self._write_list(benchmark, domain, folder)
            elif isinstance(benchmark, DigitsBenchmark):
                write_digits(domain, folder, self.images_per_class, self._chance(name, domain))
            else:
                raise ValueError(f"benchmark {name} has no miniature")

    def _write_class_folders(self, benchmark: Benchmark, domain: str, folder: Path) -> None:
        for label, name in enumerate(benchmark.classes):
            (folder / name).mkdir(exist_ok=True)
            for number, image in enumerate(self._images(benchmark, domain, label)):
                image.save(folder / name / f"{number:05}.jpg")

    def _write_list(self, benchmark: Benchmark, domain: str, folder: Path) -> None:
        lines = []
        for label in range(len(benchmark.classes)):
            for number, image in enumerate(self._images(benchmark, domain, label)):
                path = folder / f"{label:03}_{number:04}.jpg"
                image.save(path)
                lines.append(f"{folder.name}/{path.name} {label}\n")
        (folder.parent / f"{folder.name}List.txt").write_text("".join(lines))

    def _images(self, benchmark: Benchmark, domain: str, label: int) -> list[Image.Image]:
        style = STYLES[list(benchmark.domains).index(domain)]
        chance = self._chance(benchmark.name, domain, str(label))
        return [draw_figure(label, style, chance, self.image_size) for _ in range(self.images_per_class)]

    def _chance(self, *names: str) -> random.Random:
        return random.Random("/".join((str(self.seed), *names)))  # a string seeds the same in every process

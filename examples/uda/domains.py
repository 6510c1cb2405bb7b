"""The data of one task: training batches of both domains, the target as a whole, its test set."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from cmkd import Preset
from examples.uda.backbones import Backbone
from examples.uda.benchmarks import Benchmark, DomainDataset, Role, Split
from examples.uda.benchmarks.digits_small import DigitsSmall
from examples.uda.digit_views import PLAIN_VIEW, STRONG_VIEW, WEAK_VIEW
from examples.uda.image_pass import ImagePass
from examples.uda.stream import DomainBatches
from examples.uda.training import Domains
from examples.uda.transforms import TransformRole, TwoViews, build_transform

DIGIT_VIEWS: dict[TransformRole, Callable[[Any], Any]] = {
    "source_train": WEAK_VIEW,
    "target_train": WEAK_VIEW,
    "target_strong": STRONG_VIEW,
    "test": PLAIN_VIEW,
}


class TaskData:
    """Makes the data sets of one task, each with the transform of its part."""

    def __init__(
        self,
        benchmark: Benchmark,
        root: Path,
        task: tuple[str, str],
        backbone: Backbone,
        accelerator: Accelerator,
        *,
        preset: Preset,
    ) -> None:
        """Know where the data are, what the encoder takes, where to bring them, and how the preset makes views."""
        self.benchmark = benchmark
        self.root = root
        self.task = task
        self.backbone = backbone
        self.accelerator = accelerator
        self.preset = preset

    def transform(self, role: TransformRole) -> Callable[[Any], Any]:
        """The paper's transforms, and the small digits' own."""
        if isinstance(self.benchmark, DigitsSmall):
            return DIGIT_VIEWS[role]
        backbone = self.backbone
        size, (m0, m1, m2), (s0, s1, s2) = backbone.image_size, backbone.mean, backbone.std
        return build_transform(
            self.benchmark.name,
            role,
            task=self.task,
            image_size=size,
            mean=(m0, m1, m2),
            std=(s0, s1, s2),
            preset=self.preset,
        )

    def training_pass(self, role: Role, *, workers: int, at_most: int | None = None) -> ImagePass:
        """A pass over a domain's training images without augmentation: all, or `at_most` so many, evenly spaced."""
        dataset = self._dataset(role, "train", self.transform("test"))
        step = -(-len(dataset) // at_most) if at_most else 1
        return ImagePass(dataset, self.accelerator.device, workers=workers, step=step)

    def test_pass(self, *, workers: int) -> ImagePass:
        """A pass over this process's share of the target's test images."""
        return ImagePass(
            self._dataset("target", "test", self.transform("test")),
            self.accelerator.device,
            workers=workers,
            start=self.accelerator.process_index,
            step=self.accelerator.num_processes,
        )

    def domains(self, *, batch_size: int, seed: int, strong_images: bool, workers: int) -> Domains:
        """Everything that the training loop needs."""
        weak = self.transform("target_train")
        view = TwoViews(weak, self.transform("target_strong")) if strong_images else weak
        batches = DomainBatches(
            None if self.benchmark.source_free else self._dataset("source", "train", self.transform("source_train")),
            self._dataset("target", "train", view),
            batch_size=batch_size,
            seed=seed,
            process=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
        )
        return Domains(
            batches=batches,
            target=self.training_pass("target", workers=workers),
            test=self.test_pass(workers=workers),
            mean_per_class=self.benchmark.metric == "mean_per_class",
        )

    def _dataset(self, role: Role, split: Split, transform: Callable[[Any], Any]) -> DomainDataset:
        domain = self.task[("source", "target").index(role)]
        return self.benchmark.dataset(self.root, domain, split, transform, role=role)

"""The definition of a benchmark: domains, tasks, class names, a check of its files, and their datasets."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from examples.uda.benchmarks.dataset_error import DatasetError
from examples.uda.benchmarks.domain_dataset import DomainDataset

Split = Literal["train", "test"]
"""Which images: the two are the same whole domain, except in the digits, which have standard splits."""

Role = Literal["source", "target"]
"""What a domain is to a task: it decides the classes of a partial-set benchmark."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Benchmark(ABC):
    """One benchmark of unsupervised domain adaptation.

    Attributes:
        name: as given on the command line, e.g. "office_home".
        title: as given in the paper, e.g. "Office-Home".
        domains: the paper's abbreviation of each domain, and its folder under the root.
        tasks: pairs of source and target abbreviations, in the order of the paper's table.
        classes: names as on disk, in the order of the labels.
        spoken: names of classes that are not those on disk, by the latter.
        source_free: whether the source is a trained model, without images.
        metric: what the paper reports: "accuracy", or "mean_per_class", the mean of the classes' accuracies.
        layout: the tree of files that the root must hold.
        download: what to download, from where, and where to put it.
    """

    name: str
    title: str
    domains: dict[str, str]
    tasks: tuple[tuple[str, str], ...]
    classes: tuple[str, ...]
    layout: str
    download: str
    spoken: Mapping[str, str] = field(default_factory=dict)
    source_free: bool = False
    metric: Literal["accuracy", "mean_per_class"] = "accuracy"

    def class_names(self) -> list[str]:
        """The classes' names as words, blanks for underscores, in the order of the labels."""
        return [self.spoken.get(folder, folder).replace("_", " ") for folder in self.classes]

    def check(self, root: Path, *, domains: Iterable[str] | None = None, counts: bool = True) -> None:
        """Refuse files that are not the benchmark's, before anything is trained on them.

        Args:
            root: folder that holds the domains, as `layout` shows.
            domains: abbreviations of the domains that the run needs; all if left out.
            counts: whether the number of images of each domain must be the published one. Without it, layout and
                classes are still checked: for miniature copies such as `FakeDomains`.

        Raises:
            DatasetError: naming every domain that is not as expected, with the numbers, and what to download.
            ValueError: if a domain is unknown.
        """
        if not root.is_dir():
            raise self._refused(root, ["there is no such folder"])
        problems = [
            f"{domain} ({self.domains[domain]}): {problem}"
            for domain in (self.domains if domains is None else domains)
            for problem in self.problems(root, domain, counts=counts)
        ]
        if problems:
            raise self._refused(root, problems)

    def folder(self, root: Path, domain: str) -> Path:
        """Where a domain's files are. Raises `ValueError` if the domain is unknown."""
        if domain not in self.domains:
            raise ValueError(f"domain of {self.name} must be one of {', '.join(self.domains)}, got {domain!r}")
        return root / self.domains[domain]

    @abstractmethod
    def problems(self, root: Path, domain: str, *, counts: bool) -> list[str]:
        """What is wrong with one domain's files, a sentence each; empty if nothing is."""

    @abstractmethod
    def dataset(
        self, root: Path, domain: str, split: Split, transform: Callable[[Any], Any] | None = None, *, role: Role
    ) -> DomainDataset:
        """Images and labels of one domain; `labels` of the result lists all labels without opening an image.

        Args:
            root: folder that `check` accepts.
            domain: abbreviation, one of `domains`.
            split: "train" or "test"; the same whole domain but for the digits.
            transform: applied to each RGB or grey PIL image.
            role: "source" or "target": in partial-set adaptation a target has fewer classes.

        Raises:
            ValueError: if the domain is unknown.
        """

    def _refused(self, root: Path, problems: list[str]) -> DatasetError:
        found = "".join(f"  {problem}\n" for problem in problems)
        return DatasetError(
            f"{self.title} at {root} is not as expected:\n{found}{self.download}\n{root} must hold:\n{self.layout}"
        )

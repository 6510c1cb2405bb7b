"""What decides the numbers of a cell, apart from its seed: one frozen dataclass, checked when made."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args, get_origin

from examples.segmentation.domains import get_domain
from examples.segmentation.tuning import Tuning
from examples.uda.settings import SettingsError

BETAS = (0.9, 0.999)
"""Of AdamW."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How one cell is trained. Defaults are DAFormer's, which App. J follows.

    Attributes:
        source: a name of `DOMAINS`; its training split, with labels.
        target: a name of `DOMAINS`; its training split without labels, its validation split for scores.
        network: "deeplabv2" on ResNet-101, "mask2former", or "deeplabv2-tiny" for generated scenes.
        weights: of DeepLab-V2: "imagenet1k" or "none"; of Mask2Former: the hub's name or a local folder.
        method: "none" (as pretrained), "source_only", "self_training" (DACS, DAFormer), "fda", "cmkd" (App. L).
        tuning: which weights train: "full", "linear_probe", "bitfit", "lora", "rst".
        lora_rank: r of "lora".
        threshold: tau of "rst" at the start and at the end; it grows on a straight line (App. J, L).
        project_every: optimiser steps between two projections of "rst": the paper's training rounds.
        sparse_head: whether "rst" also trains the head sparsely (App. L) or saves it whole (App. J).
        iterations: length of the run; one is a batch of each domain.
        batch_size: crops of each domain.
        crop: side of the square crops.
        source_size: width and height to which source scenes are resized.
        target_size: the same for target scenes; scores are at the labels' own size.
        encoder_lr: learning rate of the encoder at its height.
        head_lr: learning rate of the head at its height.
        weight_decay: of AdamW.
        warm_up: iterations over which the learning rates grow.
        power: of the polynomial decay of the learning rates.
        clip_norm: largest norm of the gradient; 0 for any.
        ema_momentum: m of the teacher's moving average.
        pseudo_threshold: probability from which a pseudo-label counts towards the weight of an image's target pixels.
        ignore_rows: rows without pseudo-labels at a crop's top and bottom: the ego vehicle, distorted edges.
        rare_class_temperature: T of rare-class sampling; 0 draws all source scenes alike.
        min_pixels: pixels of the drawn class that a source scene needs; a crop needs half.
        source_weight: weight of the source's loss (lambda_sup of App. L).
        cmkd_weight: lambda_cmkd at the ramp's full height.
        ramp_iterations: length of its ramp.
        fda_beta: half the side of FDA's square, as a share of the crop.
        fda_entropy: weight of FDA's entropy penalty.
        mixed_precision: "no", "bf16" or "fp16"; the weights stay in float32.
        evaluate_every: iterations between two points of the curve.
    """

    source: str
    target: str
    network: Literal["deeplabv2", "mask2former", "deeplabv2-tiny"]
    weights: str
    method: Literal["none", "source_only", "self_training", "fda", "cmkd"]
    tuning: Tuning = "full"
    lora_rank: int = 16
    threshold: tuple[float, float] = (5e-4, 3.5e-2)
    project_every: int = 1_000
    sparse_head: bool = False
    iterations: int = 40_000
    batch_size: int = 2
    crop: int = 512
    source_size: tuple[int, int]
    target_size: tuple[int, int]
    encoder_lr: float = 6e-5
    head_lr: float = 6e-4
    weight_decay: float = 0.01
    warm_up: int = 1_500
    power: float = 1.0
    clip_norm: float = 0.0
    ema_momentum: float = 0.999
    pseudo_threshold: float = 0.968
    ignore_rows: tuple[int, int] = (15, 120)
    rare_class_temperature: float = 0.01
    min_pixels: int = 3_000
    source_weight: float = 1.0
    cmkd_weight: float = 0.25
    ramp_iterations: int = 10_000
    fda_beta: float = 0.01
    fda_entropy: float = 0.005
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    evaluate_every: int = 4_000

    def __post_init__(self) -> None:
        """Refuse what cannot be run. Raises `SettingsError` naming the key."""
        for entry in fields(self):
            _check_type(entry.name, getattr(self, entry.name), entry.type)
        for name in ("iterations", "batch_size", "crop", "evaluate_every", "ramp_iterations", "lora_rank"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("encoder_lr", "head_lr", "weight_decay", "warm_up", "clip_norm", "rare_class_temperature"):
            if getattr(self, name) < 0:
                raise SettingsError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("source", "target"):
            try:
                get_domain(getattr(self, name))
            except ValueError as error:
                raise SettingsError(f"{name}: {error}") from error
        for name in ("source_size", "target_size"):
            if min(getattr(self, name)) < self.crop:
                raise SettingsError(f"{name} {getattr(self, name)} is smaller than the crop of {self.crop}")
        if self.method == "cmkd" and self.network != "mask2former":
            raise SettingsError("method 'cmkd' needs a pretrained head, which only mask2former has")
        if self.tuning == "rst":
            self._check_threshold()

    def _check_threshold(self) -> None:
        """Refuse a threshold that no weight can ever pass (see `largest_step`)."""
        reach = self.project_every * largest_step(self.encoder_lr)
        if self.project_every and min(self.threshold) > reach:
            raise SettingsError(
                f"threshold {min(self.threshold):g} is out of reach: AdamW moves a weight by at most {reach:g} in "
                f"project_every = {self.project_every} steps at encoder_lr {self.encoder_lr:g}, so every projection "
                "puts every weight back"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Settings":
        """Build from YAML or JSON types. Raises `SettingsError` naming the key that is unknown, missing or wrong."""
        known = {entry.name for entry in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise SettingsError(f"unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")
        try:
            return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
        except TypeError as error:  # the dataclass names what is missing
            raise SettingsError(str(error).partition(") ")[2] or str(error)) from error

    def to_dict(self) -> dict[str, Any]:
        """Everything in JSON types."""
        values = asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change with any setting."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:12]


def largest_step(learning_rate: float) -> float:
    """The farthest that one step of Adam moves a weight: `lr * max(1, (1 - beta1) / sqrt(1 - beta2))`.

    Kingma and Ba 2015, Sec. 2.1; the larger bound is for a gradient after a long silence. AdamW's decay comes on top,
    and is smaller by orders of magnitude.
    """
    return learning_rate * max(1.0, (1 - BETAS[0]) / (1 - BETAS[1]) ** 0.5)


def _check_type(name: str, value: Any, wanted: Any) -> None:
    if get_origin(wanted) is Literal:
        if value not in get_args(wanted):
            raise SettingsError(f"{name} must be one of {', '.join(get_args(wanted))}, got {value!r}")
        return
    if get_origin(wanted) is tuple:
        kinds = get_args(wanted)
        if not isinstance(value, tuple) or len(value) != len(kinds):
            raise SettingsError(f"{name} must be {len(kinds)} numbers, got {value!r}")
        for number, kind in zip(value, kinds, strict=True):
            _check_type(name, number, kind)
        return
    fits = isinstance(value, int | float if wanted is float else wanted)
    if not fits or (isinstance(value, bool) and wanted is not bool):
        hint = " (YAML reads 3e-6 as text: write 3.0e-6)" if isinstance(value, str) else ""
        raise SettingsError(f"{name} must be {wanted.__name__}, got {value!r}{hint}")

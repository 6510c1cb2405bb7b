"""The settings that determine a cell's numbers, apart from its seed: one frozen dataclass, checked on creation."""

from dataclasses import dataclass
from typing import Literal

from examples.experiment.settings import ExperimentSettings, SettingsError
from examples.segmentation.domains import get_domain
from examples.segmentation.tuning import Tuning

BETAS = (0.9, 0.999)
"""Of AdamW."""


@dataclass(frozen=True, kw_only=True)
class Settings(ExperimentSettings):
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
        super().__post_init__()
        self.refuse_below_one("iterations", "batch_size", "crop", "evaluate_every", "ramp_iterations", "lora_rank")
        self.refuse_negative("encoder_lr", "head_lr", "weight_decay", "warm_up", "clip_norm", "rare_class_temperature")
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


def largest_step(learning_rate: float) -> float:
    """The farthest that one step of Adam moves a weight: `lr * max(1, (1 - beta1) / sqrt(1 - beta2))`.

    Kingma and Ba 2015, Sec. 2.1; the larger bound is for a gradient after a long silence. AdamW's decay comes on top,
    and is smaller by orders of magnitude.
    """
    return learning_rate * max(1.0, (1 - BETAS[0]) / (1 - BETAS[1]) ** 0.5)

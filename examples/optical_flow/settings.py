"""The settings that determine a cell's numbers, apart from its seed: one frozen dataclass, checked on creation."""

from dataclasses import dataclass
from typing import Literal

from examples.experiment.settings import ExperimentSettings, SettingsError

Method = Literal["fine_tuning", "linear_probe", "bitfit", "lora", "rst", "rst_bias"]


@dataclass(frozen=True, kw_only=True)
class Settings(ExperimentSettings):
    """How one cell is trained. Defaults are MMFlow's KITTI-2015 profile of RAFT, which App. M starts from.

    Attributes:
        method: one row of Table X, see `methods.py`.
        architecture: "raft_large", or "raft_tiny" for generated scenes.
        weights: torchvision's name of the starting weights; None starts from random ones.
        pairs: "all" trains on and is measured on all pairs, as MMFlow does; "held_out" keeps every fifth for measuring.
        steps: length of the run; the paper's is twice the profile's.
        batch_size: image pairs a step.
        crop_height: of the training crops, a multiple of 8.
        crop_width: likewise.
        updates: RAFT's refinements in training.
        test_updates: refinements when measured.
        lr: peak of the one-cycle schedule of AdamW.
        weight_decay: of AdamW.
        warm_up: share of the run in which the learning rate rises.
        clip_norm: largest norm of all gradients together.
        gamma: of the sequence loss.
        final_share: r at the end, for "rst": 0.002 is 0.2 %.
        curve: how r falls to it; the paper does not say.
        lora_rank: for "lora".
        evaluate_every: steps between two points of the curve.
    """

    method: Method
    architecture: Literal["raft_large", "raft_tiny"] = "raft_large"
    weights: str | None = None
    pairs: Literal["all", "held_out"] = "all"
    steps: int = 100_000
    batch_size: int = 16
    crop_height: int = 288
    crop_width: int = 960
    updates: int = 12
    test_updates: int = 32
    lr: float = 1.25e-4
    weight_decay: float = 1e-5
    warm_up: float = 0.05
    clip_norm: float = 1.0
    gamma: float = 0.85
    final_share: float = 0.002
    curve: Literal["linear", "geometric"] = "linear"
    lora_rank: int = 1
    evaluate_every: int = 5_000

    def __post_init__(self) -> None:
        """Refuse a value of the wrong type or out of range. Raises `SettingsError` naming the key."""
        super().__post_init__()
        self.refuse_below_one("steps", "batch_size", "updates", "test_updates", "lora_rank", "evaluate_every")
        for name in ("crop_height", "crop_width"):
            if getattr(self, name) < 8 or getattr(self, name) % 8:
                raise SettingsError(f"{name} must be a positive multiple of 8, got {getattr(self, name)}")
        for name in ("lr", "clip_norm", "gamma"):
            if getattr(self, name) <= 0:
                raise SettingsError(f"{name} must be positive, got {getattr(self, name)}")
        self.refuse_negative("weight_decay")
        for name in ("warm_up", "final_share"):
            if not 0 < getattr(self, name) <= 1:
                raise SettingsError(f"{name} must be in (0, 1], got {getattr(self, name)}")

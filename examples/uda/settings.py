"""The settings that determine a cell's numbers, apart from task and seed: one frozen dataclass, checked on creation."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from cmkd import PRESETS, Preset
from examples.experiment.settings import ExperimentSettings, SettingsError

TERMS = ("task", "distill", "regularization")


@dataclass(frozen=True, kw_only=True)
class Settings(ExperimentSettings):
    """How one cell is trained. Defaults are the paper's (Sec. IV.A).

    Attributes:
        benchmark: a name that `get_benchmark` knows.
        method: a name that `examples.uda.methods` knows, such as "cmkd+rst".
        backbone: "RN50", "ViT-B-16", ...; any architecture of open_clip.
        weights: its pretraining: "openai" or another tag of open_clip, "imagenet1k", "imagenet21k", ...
        teacher: "text" is CLIP's own; "prototypes" App. E's for ImageNet backbones; "text_embeddings" a stand-in.
        preset: which reading of the method, "paper", "official" or "corrected": losses, head, prompts, optimiser.
        preset_changes: fields of the preset to change, such as `{alpha: constant}`.
        prompt: template of the class prompts; the preset's if left out.
        lambda1: weight of CMKD's task and distillation terms (Eq. 12).
        lambda2: weight of the teacher's cross entropy on the source (Eq. 13).
        lambda3: weight of the teacher's Gini impurity on the target (Eq. 13).
        terms: which of CMKD's terms take part (Table IX).
        ramp_iterations: length of the ramp of lambda1 and lambda3, whatever the run's.
        fixmatch_weight: lambda_fm of methods with "+fixmatch" (App. B).
        fixmatch_threshold: tau_fm.
        partial_set: whether the target has fewer classes than the source, and CMKD estimates them (App. K).
        options: keyword arguments of a baseline's objective, such as `{weight: 0.5}`.
        iterations: length of the run; one iteration is one batch of each domain.
        batch_size: images of each domain, of all processes together.
        encoder_lr: learning rate of the image encoder.
        head_lr: learning rate of the task head and of the objective's own modules.
        optimizer: "sgd", the paper's, or "adamw", which PMTrans was published with.
        momentum: of SGD.
        lr_gamma: learning rates are multiplied by `(1 + lr_gamma * iteration) ** -0.75` where the preset has
            `lr_decay`: the released code's 0.0003; 0 holds them.
        frozen_batchnorm: whether the encoder's BatchNorm stands still (Sec. IV.A); Table VIII's Configuration 1 lets it
            go.
        weight_decay: of the optimiser.
        mixed_precision: "no", "bf16" or "fp16"; the weights stay in float32.
        threshold: tau of Eq. 17, for methods with "+rst".
        evaluate_every: iterations between two points of the curve.
    """

    benchmark: str
    method: str
    backbone: str
    weights: str = "openai"
    teacher: Literal["text", "prototypes", "text_embeddings"] = "text"
    preset: Literal["paper", "official", "corrected"] = "official"
    preset_changes: Mapping[str, Any] = field(default_factory=dict)
    prompt: str | None = None
    lambda1: float = 0.25
    lambda2: float = 0.1
    lambda3: float = 0.025
    terms: tuple[str, ...] = TERMS
    ramp_iterations: int = 10_000
    fixmatch_weight: float = 0.5
    fixmatch_threshold: float = 0.95
    partial_set: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    iterations: int
    batch_size: int = 32
    encoder_lr: float
    head_lr: float
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    lr_gamma: float = 3e-4
    frozen_batchnorm: bool = True
    weight_decay: float = 5e-4
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    threshold: float = 1e-6
    evaluate_every: int

    def __post_init__(self) -> None:
        """Refuse a value of the wrong type or out of range. Raises `SettingsError` naming the key."""
        super().__post_init__()
        self.refuse_below_one("iterations", "batch_size", "evaluate_every", "ramp_iterations")
        if unknown := sorted(set(self.terms) - set(TERMS)):
            raise SettingsError(f"terms must be among {', '.join(TERMS)}, got {unknown[0]!r}")
        self.resolved_preset()
        self.refuse_negative("encoder_lr", "head_lr", "momentum", "weight_decay", "lr_gamma", "threshold")

    def resolved_preset(self) -> Preset:
        """The preset with its changes. Raises `SettingsError` naming a field that presets lack."""
        known = [entry.name for entry in fields(Preset)]
        if unknown := sorted(self.preset_changes.keys() - set(known)):
            raise SettingsError(f"preset_changes has the unknown key {unknown[0]!r}; known are {', '.join(known)}")
        return replace(PRESETS[self.preset], **self.preset_changes)

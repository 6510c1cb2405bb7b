"""Cross-Modal Knowledge Distillation: losses that adapt a vision-language model to an unlabelled target domain."""

from cmkd.adaptation import CMKD
from cmkd.alpha import constant_alpha, entropy_alpha, kl_alpha
from cmkd.batchnorm import freeze_batchnorm
from cmkd.clip import AdaptableCLIP, load_open_clip, load_transformers_clip
from cmkd.distillation import kl_distillation
from cmkd.evaluation import eval_mode
from cmkd.fixmatch import FixMatch, FixMatchTerms, pseudo_label_loss
from cmkd.gini import gini_balanced, gini_mean
from cmkd.head import TaskHead
from cmkd.loss import CMKDLoss, CMKDTerms
from cmkd.mixed_view import mix_views
from cmkd.objective import PARTS, DomainBatch, Objective, Phase, Student, TargetBatch
from cmkd.partial import PartialSet, estimate_classes
from cmkd.presets import PRESETS, Preset
from cmkd.prompts import build_prompts, prompt_order
from cmkd.prototypes import PrototypeTeacher, average_prototypes, relationship_prototypes
from cmkd.ramp import sigmoid_ramp
from cmkd.regularization import teacher_regularization
from cmkd.source_free import SourceFreeCMKD
from cmkd.source_only import SourceOnly
from cmkd.teacher import TextTeacher
from cmkd.validators import (
    VALIDATORS,
    batch_nuclear_norm,
    information_maximization,
    negative_entropy,
    soft_neighborhood_density,
)

__all__ = [
    "CMKD",
    "PARTS",
    "PRESETS",
    "VALIDATORS",
    "AdaptableCLIP",
    "CMKDLoss",
    "CMKDTerms",
    "DomainBatch",
    "FixMatch",
    "FixMatchTerms",
    "Objective",
    "PartialSet",
    "Phase",
    "Preset",
    "PrototypeTeacher",
    "SourceFreeCMKD",
    "SourceOnly",
    "Student",
    "TargetBatch",
    "TaskHead",
    "TextTeacher",
    "average_prototypes",
    "batch_nuclear_norm",
    "build_prompts",
    "constant_alpha",
    "entropy_alpha",
    "estimate_classes",
    "eval_mode",
    "freeze_batchnorm",
    "gini_balanced",
    "gini_mean",
    "information_maximization",
    "kl_alpha",
    "kl_distillation",
    "load_open_clip",
    "load_transformers_clip",
    "mix_views",
    "negative_entropy",
    "prompt_order",
    "pseudo_label_loss",
    "relationship_prototypes",
    "sigmoid_ramp",
    "soft_neighborhood_density",
    "teacher_regularization",
]

"""Cross-Modal Knowledge Distillation: losses that adapt a vision-language model to an unlabelled target domain."""

from cmkd.alpha import constant_alpha, entropy_alpha, kl_alpha
from cmkd.gini import gini_balanced, gini_mean
from cmkd.loss import CMKDLoss, CMKDTerms
from cmkd.mixed_view import mix_views
from cmkd.presets import PRESETS, Preset
from cmkd.ramp import sigmoid_ramp

__all__ = [
    "PRESETS",
    "CMKDLoss",
    "CMKDTerms",
    "Preset",
    "constant_alpha",
    "entropy_alpha",
    "gini_balanced",
    "gini_mean",
    "kl_alpha",
    "mix_views",
    "sigmoid_ramp",
]

"""The methods of unsupervised domain adaptation that the paper compares with or combines with RST.

`BASELINES` builds each of them by name, from the sizes of the student and the settings of the method:

    objective = BASELINES["dsan"](feature_dim=512, classes=65, weight=0.5)
"""

from collections.abc import Callable
from typing import Any

from cmkd.baselines.bnm import BNM, fast_nuclear_norm_loss, nuclear_norm_loss
from cmkd.baselines.bottleneck import BottleneckHead
from cmkd.baselines.cdan import CDAN, MultilinearMap, certainty_weights
from cmkd.baselines.cdtrans import CDTrans, two_way_pairs
from cmkd.baselines.cgdm import CGDM, classifier_discrepancy, entropy_weighted_cross_entropy, gradient_discrepancy
from cmkd.baselines.dann import DANN
from cmkd.baselines.dsan import DSAN, gaussian_kernels, lmmd_loss
from cmkd.baselines.mcc import MCC, class_confusion_loss
from cmkd.baselines.minent import MinEnt, entropy_loss
from cmkd.baselines.pmtrans import PMTrans, neighbour_labels
from cmkd.baselines.shot import SHOT, information_maximisation_loss
from cmkd.baselines.ssrt import SSRT, self_refinement_loss
from cmkd.baselines.target_pass import centroid_labels
from cmkd.baselines.vision_transformer import ViTTokens, vit_tokens
from cmkd.objective import Objective


def _without_sizes(method: Callable[..., Objective]) -> Callable[..., Objective]:
    def build(*, feature_dim: int, classes: int, **settings: Any) -> Objective:
        return method(**settings)

    return build


def _with_feature_dim(method: Callable[..., Objective]) -> Callable[..., Objective]:
    def build(*, feature_dim: int, classes: int, **settings: Any) -> Objective:
        return method(feature_dim, **settings)

    return build


BASELINES: dict[str, Callable[..., Objective]] = {
    "minent": _without_sizes(MinEnt),
    "bnm": _without_sizes(BNM),
    "mcc": _without_sizes(MCC),
    "dann": _with_feature_dim(DANN),
    "cdan": CDAN,
    "dsan": _without_sizes(DSAN),
    "cgdm": CGDM,
    "shot": _without_sizes(SHOT),
    "cdtrans": _without_sizes(CDTrans),
    "ssrt": _with_feature_dim(SSRT),
    "pmtrans": _without_sizes(PMTrans),
}
"""Builders by name: `BASELINES[name](feature_dim=..., classes=..., **settings)`; omitted settings have defaults."""

__all__ = [
    "BASELINES",
    "BNM",
    "CDAN",
    "CGDM",
    "DANN",
    "DSAN",
    "MCC",
    "SHOT",
    "SSRT",
    "BottleneckHead",
    "CDTrans",
    "MinEnt",
    "MultilinearMap",
    "PMTrans",
    "ViTTokens",
    "centroid_labels",
    "certainty_weights",
    "class_confusion_loss",
    "classifier_discrepancy",
    "entropy_loss",
    "entropy_weighted_cross_entropy",
    "fast_nuclear_norm_loss",
    "gaussian_kernels",
    "gradient_discrepancy",
    "information_maximisation_loss",
    "lmmd_loss",
    "neighbour_labels",
    "nuclear_norm_loss",
    "self_refinement_loss",
    "two_way_pairs",
    "vit_tokens",
]

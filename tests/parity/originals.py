"""Every file of numbers: what it holds against which original, and the tolerances."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.parity import (
    cmkd_losses,
    domain_losses,
    prompts,
    prototypes,
    target_losses,
    trajectories,
    transformers,
    views,
)
from tests.parity.numbers import Case, Differences, read_cases


@dataclass(frozen=True)
class Original:
    """One method beside the code that its authors released.

    Attributes:
        method: as documented.
        source: repository and the first digits of the commit.
        compare: the differences of a case, by its name and arrays.
        values: largest relative difference of a value.
        gradients: of a gradient.
        read: the cases of the file of this name.
    """

    method: str
    source: str
    compare: Callable[[str, Case], Differences]
    values: float
    gradients: float
    read: Callable[[str], dict[str, Case]] = read_cases


VLP_UDA = "Wenlve-Zhou/VLP-UDA bf8f049"

ORIGINALS = {
    "cmkd_loss": Original("CMKD, Eq. 12", VLP_UDA, cmkd_losses.cmkd_loss, 1e-9, 1e-9),
    "fixmatch": Original("FixMatch on both views", VLP_UDA, cmkd_losses.fixmatch, 1e-9, 1e-9),
    "partial_set": Original("Partial set", VLP_UDA, cmkd_losses.partial_set, 1e-9, 1e-9),
    "trajectory_cmkd": Original("CMKD + RST, 25 steps", VLP_UDA, trajectories.trajectory, 1e-8, 1e-6),
    "trajectory_fixmatch": Original("CMKD + FixMatch + RST, 25 steps", VLP_UDA, trajectories.trajectory, 1e-8, 1e-6),
    "trajectory_partial": Original("CMKD, partial set, 25 steps", VLP_UDA, trajectories.trajectory, 1e-8, 1e-6),
    "trajectory_source_only": Original("Baseline + RST, 25 steps", VLP_UDA, trajectories.trajectory, 1e-8, 1e-6),
    "views": Original("Views, in levels of 255", VLP_UDA, views.views, 1.0, 0.0),
    "prompts": Original("Prompts", VLP_UDA, prompts.prompts, 0.0, 0.0, lambda name: prompts.read_prompts()),
    "prototypes": Original("Prototypes", "thuml/CoTuning fc3eb54", prototypes.prototypes, 0.3, 0.0),
    "validators": Original("SND, entropy", "VisionLearningGroup/SND 6aae970", target_losses.validators, 2e-3, 0.0),
    "minent": Original("MinEnt", "tim-learn/SHOT f7d555a", target_losses.minent, 1e-3, 1e-3),
    "mcc": Original("MCC", "thuml/Transfer-Learning-Library c4aa59e", target_losses.mcc, 1e-4, 1e-3),
    "bnm": Original("BNM", "cuishuhao/BNM 2d23c61", target_losses.bnm, 1e-9, 1e-8),
    "dann": Original("DANN", "thuml/CDAN c904cd3", domain_losses.dann, 1e-6, 2e-4),
    "cdan": Original("CDAN+E", "thuml/CDAN c904cd3", domain_losses.cdan, 1e-4, 1e-3),
    "dsan": Original("DSAN", "easezyc/deep-transfer-learning 2969ed6", domain_losses.dsan, 1e-5, 1e-5),
    "cgdm": Original("CGDM", "lijin118/CGDM 012d631", domain_losses.cgdm, 5e-4, 1e-3),
    "shot": Original("SHOT", "tim-learn/SHOT f7d555a", target_losses.shot, 1e-3, 1e-3),
    "cdtrans": Original("CDTrans", "CDTrans/CDTrans e390076", transformers.cdtrans, 1e-9, 1e-8),
    "ssrt": Original("SSRT", "tsun/SSRT 0bf39fd", transformers.ssrt, 1e-5, 1e-5),
    "pmtrans": Original("PMTrans", "JinjingZhu/PMTrans aa085af", transformers.pmtrans, 1e-4, 1e-4),
}
"""By the name of the file of numbers."""

"""Losses of the target's predictions alone, SHOT's pseudo-labels and the validators."""

from collections.abc import Callable

import torch
from torch import Tensor

from cmkd import VALIDATORS
from cmkd.baselines import (
    centroid_labels,
    class_confusion_loss,
    entropy_loss,
    information_maximisation_loss,
    nuclear_norm_loss,
)
from tests.parity.numbers import Case, Differences, leaf


def _of_logits(case: Case, loss: Callable[[Tensor], Tensor]) -> Differences:
    found = Differences()
    logits = leaf(case["logits"])
    value = loss(logits)
    value.backward()
    found.value("value", value, case["value"])
    found.gradient("logits", logits.grad, case["grad_logits"])
    return found


def minent(name: str, case: Case) -> Differences:
    return _of_logits(case, entropy_loss)


def mcc(name: str, case: Case) -> Differences:
    return _of_logits(case, lambda logits: class_confusion_loss(logits, case["temperature"]))


def bnm(name: str, case: Case) -> Differences:
    return _of_logits(case, nuclear_norm_loss)


def shot(name: str, case: Case) -> Differences:
    if name.startswith("information"):
        return _of_logits(case, information_maximisation_loss)
    found = Differences()
    # the original ran in float32, where near ties are decided
    labels = centroid_labels(case["features"].float(), case["probabilities"].float())
    found.equal("labels", labels, case["labels"])
    if "emptied_classes" in case:
        found.equal("emptied", torch.isin(labels, case["emptied_classes"]).sum(), 0)
    return found


def validators(name: str, case: Case) -> Differences:
    found = Differences()
    found.value("snd", VALIDATORS["snd"](case["logits"]), case["snd"])
    found.value("entropy", -VALIDATORS["entropy"](case["logits"]), case["entropy"])
    return found

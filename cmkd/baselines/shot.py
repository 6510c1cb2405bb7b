"""SHOT: a classifier learnt on the source, then frozen, to which the target's features are fitted."""

import math

from torch import Tensor
from torch.nn import functional as F

from cmkd.baselines.minent import entropy_loss
from cmkd.baselines.source_first import SourceFirst
from cmkd.log_view import log_view
from cmkd.objective import DomainBatch, Phase, Student


def information_maximisation_loss(logits: Tensor) -> Tensor:
    """Mean entropy of the predictions minus the entropy of their mean (SHOT, Sec. 3.2).

    Args:
        logits: (B, C), floating point.

    Returns:
        A 0-d tensor, float32 or better, from -log C (certain and evenly spread) to 0.
    """
    # In logarithms: p log p has no finite gradient at 0, where a class lies that the whole batch rules out.
    log_mean = log_view(logits).logsumexp(dim=0) - math.log(len(logits))
    return entropy_loss(logits) + (log_mean.exp() * log_mean).sum()


class SHOT(SourceFirst):
    """Cross entropy on the source first; then, without source and with the head frozen, self-training on the target.

    Liang et al., "Do We Really Need to Access the Source Data? Source Hypothesis Transfer for Unsupervised Domain
    Adaptation", ICML 2020. The target's loss is information maximisation plus beta (0.3) times the cross entropy with
    centroid pseudo-labels, taken when the target phase starts and renewed once an epoch. Differences: both phases share
    one run, split at `source_fraction` of its iterations (the paper trains two models one after the other); the whole
    head is frozen, where the paper's bottleneck between encoder and classifier goes on training (batch statistics of a
    head in train mode still follow the target).
    """

    def __init__(self, *, source_fraction: float = 0.5, beta: float = 0.3, label_smoothing: float = 0.1) -> None:
        """Choose the split between the phases, the weight of the pseudo-labels, and the source's label smoothing.

        Raises:
            ValueError: if `source_fraction` is not between 0 and 1.
        """
        super().__init__(source_fraction=source_fraction, label_smoothing=label_smoothing)
        self.beta = beta

    def target_phase(self, student: Student, batch: DomainBatch) -> Phase:
        """Information maximisation and pseudo-labels, which train the encoder."""
        labels = self.pseudo_labels.at(batch.target_positions)
        logits = student(batch.target_images)
        information = information_maximisation_loss(logits)
        pseudo = F.cross_entropy(logits, labels)
        return Phase(
            information + self.beta * pseudo, {"information": information, "pseudo": pseudo}, trains=("encoder",)
        )

"""SHOT: trains a classifier on the source, freezes it, and fits the target's features to it."""

import math
from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn import functional as F

from cmkd.baselines.bottleneck import BottleneckHead, bottleneck_head
from cmkd.baselines.minent import entropy_loss
from cmkd.baselines.source_first import SourceFirst
from cmkd.log_view import log_view
from cmkd.objective import DomainBatch, Phase, Student, TargetBatch


def information_maximisation_loss(logits: Tensor) -> Tensor:
    """Compute the mean entropy of the predictions minus the entropy of their mean (SHOT, Sec. 3.2).

    Args:
        logits: (B, C), floating point.

    Returns:
        A 0-d tensor, float32 or better, from -log C (certain and evenly spread) to 0.
    """
    # In logarithms: p log p has no finite gradient at 0, the mean of a class that the whole batch rules out.
    log_mean = log_view(logits).logsumexp(dim=0) - math.log(len(logits))
    return entropy_loss(logits) + (log_mean.exp() * log_mean).sum()


class SHOT(SourceFirst):
    """Cross entropy on the source first, then self-training on the target without the source and with the head frozen.

    Liang et al., "Do We Really Need to Access the Source Data? Source Hypothesis Transfer for Unsupervised Domain
    Adaptation", ICML 2020. The target loss is information maximisation plus beta (0.3) times the cross entropy with
    centroid pseudo-labels, which are computed when the target phase starts and renewed once per epoch.

    Differences: both phases share one run, split at `source_fraction` of its iterations (the paper trains two models
    one after the other; at 0, no source is used). Any head other than SHOT's own is frozen entirely (batch statistics
    of a head in train mode still follow the target). With `bottleneck=256` and the head that `task_head` returns, all
    is as published: the centroids are of the bottleneck's features, the bottleneck is trained on the target, and the
    classifier, with weight normalisation, is not.
    """

    def __init__(
        self,
        *,
        source_fraction: float = 0.5,
        beta: float = 0.3,
        bottleneck: int | None = None,
        label_smoothing: float = 0.1,
    ) -> None:
        """Set the length of the source phase, the weight of the pseudo-labels, and the kind of head.

        Args:
            source_fraction: share of the iterations on the source.
            beta: weight of the pseudo-labels.
            bottleneck: width of the published head's bottleneck, 256; None for another kind of head.
            label_smoothing: label smoothing of the source cross entropy.

        Raises:
            ValueError: if `source_fraction` is not between 0 and 1.
        """
        super().__init__(source_fraction=source_fraction, label_smoothing=label_smoothing)
        self.beta = beta
        self.bottleneck = bottleneck

    def task_head(self, feature_dim: int, classes: int) -> BottleneckHead | None:
        """Return the published head if `bottleneck` is set."""
        return None if self.bottleneck is None else BottleneckHead(feature_dim, classes, self.bottleneck, normed=True)

    def refresh(self, student: Student, target: Iterable[TargetBatch]) -> None:
        """Compute pseudo-labels from class centroids, of the bottleneck's features if there is one."""
        if self.bottleneck is not None:
            head = bottleneck_head(student)
            student = Student(nn.Sequential(student.encoder, head.bottleneck), head.classifier)
        super().refresh(student, target)

    def target_phase(self, student: Student, batch: DomainBatch) -> Phase:
        """Return information maximisation plus pseudo-labels, for the encoder and the bottleneck if there is one.

        Raises:
            ValueError: if `bottleneck` is set and the head has none.
        """
        labels = self.pseudo_labels.at(batch.target_positions)
        trains: tuple[str, ...] = ("encoder",)
        if self.bottleneck is None:
            logits = student(batch.target_images)
        else:
            logits, trains = _under_fixed_classifier(student, batch.target_images), ("encoder", "head")
        information = information_maximisation_loss(logits)
        pseudo = F.cross_entropy(logits, labels)
        return Phase(information + self.beta * pseudo, {"information": information, "pseudo": pseudo}, trains=trains)


def _under_fixed_classifier(student: Student, images: Tensor) -> Tensor:
    head = bottleneck_head(student)
    return F.linear(
        head.bottleneck(student.encoder(images)), head.classifier.weight.detach(), head.classifier.bias.detach()
    )

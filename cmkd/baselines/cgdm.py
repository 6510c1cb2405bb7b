"""CGDM: two classifiers that disagree on the target, and features whose gradients agree across the domains."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from cmkd.baselines.shot import information_maximisation_loss
from cmkd.baselines.target_pass import TargetMemory, centroid_labels, view_target
from cmkd.baselines.views import sample_entropy
from cmkd.evaluation import eval_mode
from cmkd.head import TaskHead
from cmkd.log_view import log_view
from cmkd.objective import DomainBatch, Objective, Phase, Student, TargetBatch


def classifier_discrepancy(first_logits: Tensor, second_logits: Tensor) -> Tensor:
    """Compute the mean absolute difference of two classifiers' probabilities; logits (B, C), 0-d result (MCD, CGDM)."""
    return (log_view(first_logits).exp() - log_view(second_logits).exp()).abs().mean()


def entropy_weighted_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the cross entropy with pseudo-labels, weighted by `1 + exp(-H)` of the predictions; the weights sum to 1.

    The released code divides this weighted mean, which is CGDM's weighted loss, by the batch size once more.

    Args:
        logits: (B, C), floating point.
        labels: (B,), int64.
    """
    weights = 1 + (-sample_entropy(logits)).exp()
    losses = F.nll_loss(log_view(logits), labels, reduction="none")
    return (weights * losses).sum() / weights.sum().detach()


def gradient_discrepancy(source_loss: Tensor, target_loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Compute the mean over parameters of 1 minus the cosine between the gradients of two losses (CGDM's L_gd).

    As in the released code, the cosine is taken row by row for matrices and averaged; a vector is one row. The result
    is differentiable, which is how it reaches the features.

    Args:
        source_loss: 0-d, a function of `parameters`.
        target_loss: 0-d, the same for the other domain.
        parameters: of a classifier; parameters that require no gradient are skipped.

    Returns:
        A 0-d tensor from 0 (parallel) to 2 (opposite).

    Raises:
        ValueError: if no parameter requires a gradient.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained:
        raise ValueError(f"none of the {len(parameters)} parameters needs a gradient")
    source_gradients = torch.autograd.grad(source_loss, trained, create_graph=True)
    target_gradients = torch.autograd.grad(target_loss, trained, create_graph=True)
    return torch.stack(
        [
            1 - F.cosine_similarity(source.flatten(1), target.flatten(1), dim=1).mean()
            if source.ndim > 1
            else 1 - F.cosine_similarity(source, target, dim=0)
            for source, target in zip(source_gradients, target_gradients, strict=True)
        ]
    ).mean()


class CGDM(Objective):
    """Cross-domain gradient discrepancy minimisation on two classifiers, in three kinds of steps.

    Du et al., "Cross-Domain Gradient Discrepancy Minimization for Unsupervised Domain Adaptation", CVPR 2021. Every
    iteration yields, as the released code does,

    - A, which trains everything: cross entropy of both classifiers on the source, entropy term and weighted
      pseudo-label cross entropy on the target;
    - B, which trains both classifiers: the same cross entropy and entropy term, minus their discrepancy on the target;
    - C, `encoder_steps` times, which trains the encoder: their discrepancy, entropy term and the gradient discrepancy.

    The entropy term is each classifier's mean entropy minus the entropy of its mean prediction. The released code has
    this second half, the paper's text does not; it distinguishes even predictions from collapsed ones. Pseudo-labels
    come from centroids under the summed logits of both classifiers. They are used from the second `refresh` on, because
    the first sees an untrained head (the released code uses none in its first epoch). Differences: the weighted cross
    entropy is a weighted mean, B times the released one; the second classifier is a `TaskHead`; the student keeps only
    the first classifier, whereas CGDM predicts with the sum of both.
    """

    needs_target_pass = True
    passes: Tensor

    def __init__(
        self,
        feature_dim: int,
        classes: int,
        *,
        entropy_weight: float = 0.01,
        pseudo_weight: float = 0.01,
        gradient_weight: float = 0.01,
        encoder_steps: int = 4,
        label_smoothing: float = 0.1,
    ) -> None:
        """Build the second classifier.

        Args:
            feature_dim: D of the encoder's features (B, D).
            classes: C of the head's logits (B, C).
            entropy_weight: weight of the target's entropy term in all steps.
            pseudo_weight: weight of the pseudo-label cross entropy in step A.
            gradient_weight: weight of the gradient discrepancy in steps C.
            encoder_steps: number of steps C per iteration.
            label_smoothing: label smoothing of the source cross entropy.
        """
        super().__init__()
        self.entropy_weight = entropy_weight
        self.pseudo_weight = pseudo_weight
        self.gradient_weight = gradient_weight
        self.encoder_steps = encoder_steps
        self.label_smoothing = label_smoothing
        self.second_head = TaskHead(feature_dim, classes)
        self.pseudo_labels = TargetMemory()
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def refresh(self, student: Student, target: Iterable[TargetBatch]) -> None:
        """Compute pseudo-labels from class centroids over the whole target training set."""
        views = view_target(student, target)
        with torch.no_grad(), eval_mode(self):
            probabilities = (views.logits + self.second_head(views.features)).softmax(dim=1)
        self.pseudo_labels.store(views.positions, centroid_labels(views.features, probabilities))
        self.passes += 1

    def phases(self, student: Student, batch: DomainBatch, *, iteration: int, max_iterations: int) -> Iterator[Phase]:
        """Yield step A, step B and `encoder_steps` steps C.

        Raises:
            RuntimeError: if `refresh` was not called or did not see an image of the batch.
        """
        labels = self.pseudo_labels.at(batch.target_positions)
        yield self._discriminative_step(student, batch, labels)
        yield self._diversity_step(student, batch)
        for _ in range(self.encoder_steps):
            yield self._agreement_step(student, batch, labels)

    def _discriminative_step(self, student: Student, batch: DomainBatch, labels: Tensor) -> Phase:
        source, target = self._views(student, batch)
        classification, entropy = self._classification(source, batch), self._entropy(target)
        total = classification + self.entropy_weight * entropy
        terms = {"classification": classification, "entropy": entropy}
        if self.passes > 1:
            terms["pseudo"] = _sum(entropy_weighted_cross_entropy(logits, labels) for logits in target)
            total = total + self.pseudo_weight * terms["pseudo"]
        return Phase(total, terms)

    def _diversity_step(self, student: Student, batch: DomainBatch) -> Phase:
        source, target = self._views(student, batch)
        discrepancy = classifier_discrepancy(*target)
        total = self._classification(source, batch) - discrepancy + self.entropy_weight * self._entropy(target)
        return Phase(total, {"discrepancy": discrepancy}, trains=("head", "objective"))

    def _agreement_step(self, student: Student, batch: DomainBatch, labels: Tensor) -> Phase:
        source, target = self._views(student, batch)
        discrepancy = classifier_discrepancy(*target)
        total = discrepancy + self.entropy_weight * self._entropy(target)
        terms = {"encoder_discrepancy": discrepancy}
        if self.passes > 1:
            heads = (student.head, self.second_head)
            terms["gradient"] = 0.5 * _sum(
                gradient_discrepancy(
                    F.cross_entropy(source_logits, batch.source_labels),
                    entropy_weighted_cross_entropy(target_logits, labels),
                    list(head.parameters()),
                )
                for source_logits, target_logits, head in zip(source, target, heads, strict=True)
            )
            total = total + self.gradient_weight * terms["gradient"]
        return Phase(total, terms, trains=("encoder",))

    def _views(self, student: Student, batch: DomainBatch) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return the logits of both classifiers on the source and on the target."""
        features = student.encoder(torch.cat([batch.source_images, batch.target_images]))
        first, second = student.head(features), self.second_head(features)
        size = len(batch.source_images)
        return (first[:size], second[:size]), (first[size:], second[size:])

    def _classification(self, source: tuple[Tensor, Tensor], batch: DomainBatch) -> Tensor:
        smoothing = self.label_smoothing
        return _sum(F.cross_entropy(x, batch.source_labels, label_smoothing=smoothing) for x in source)

    def _entropy(self, target: tuple[Tensor, Tensor]) -> Tensor:
        return _sum(information_maximisation_loss(logits) for logits in target)


def _sum(losses: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(losses)).sum()

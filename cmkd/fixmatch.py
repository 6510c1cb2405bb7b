"""FixMatch on both views (App. B): confident predictions on weakly augmented images label their strong copies."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FixMatchTerms(NamedTuple):
    """The losses of both views as 0-d tensors, lambda_fm included: `total = student + teacher`."""

    total: Tensor
    student: Tensor
    teacher: Tensor


class FixMatch(nn.Module):
    """Train the strong view of student and teacher on the pseudo-labels of their own weak view (App. B).

        fixmatch = FixMatch(weight=0.5, threshold=0.95)  # VisDA-2017: 2.0, 0.80; DomainNet: 0.1, 0.95
        terms = fixmatch(
            student_weak=..., student_strong=..., teacher_weak=..., teacher_strong=...
        )  # logits (B, C) of the same B images

    Source: Sohn et al., FixMatch, 2020; App. B applies it to both views.
    """

    def __init__(self, weight: float = 0.5, threshold: float = 0.95) -> None:
        """Set lambda_fm and tau_fm; the defaults are those of App. B for most benchmarks.

        Args:
            weight: lambda_fm, the factor of each view's loss.
            threshold: tau_fm, the minimum probability of a pseudo-label.

        Raises:
            ValueError: if the threshold is outside [0, 1].
        """
        super().__init__()
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must lie in [0, 1], got {threshold}")
        self.weight = weight
        self.threshold = threshold

    def forward(
        self,
        *,
        student_weak: Tensor,
        student_strong: Tensor,
        teacher_weak: Tensor,
        teacher_strong: Tensor,
        classes: Tensor | None = None,
    ) -> FixMatchTerms:
        """Compute the losses of both views, in float32 or better, from logits (B, C).

        Args:
            student_weak: logits of the task head on the weakly augmented images; detached here.
            student_strong: logits of the task head on the strongly augmented images.
            teacher_weak: logits of the teacher on the weakly augmented images; detached here.
            teacher_strong: logits of the teacher on the strongly augmented images.
            classes: (C,), bool: the classes allowed as pseudo-labels; all by default. See `PartialSet`.

        Raises:
            ValueError: if the shapes of a view's logits differ, or `classes` does not fit them.
        """
        student = self.weight * pseudo_label_loss(student_weak, student_strong, self.threshold, classes)
        teacher = self.weight * pseudo_label_loss(teacher_weak, teacher_strong, self.threshold, classes)
        return FixMatchTerms(student + teacher, student, teacher)


def pseudo_label_loss(weak: Tensor, strong: Tensor, threshold: float, classes: Tensor | None = None) -> Tensor:
    """Compute the cross entropy of the strong view with the weak view's confident labels, averaged over the batch.

    Images with `max p < threshold` add 0 to the mean; a NaN in a view makes the loss NaN. Classes outside `classes`
    get probability 0 before the label is taken, without renormalisation (App. K and the released code).

    Args:
        weak: (B, C) logits; detached here.
        strong: (B, C) logits of the same images.
        threshold: the minimum probability of a label.
        classes: (C,), bool; all classes by default.

    Returns:
        A 0-d tensor, float32 or the logits' dtype if that is wider.

    Raises:
        ValueError: if the shapes differ, the batch is empty, or `classes` does not fit.
    """
    if weak.ndim != 2 or weak.shape != strong.shape or weak.numel() == 0:
        raise ValueError(
            f"weak {tuple(weak.shape)} and strong {tuple(strong.shape)} logits must be (B, C) alike and not empty"
        )
    dtype = torch.promote_types(strong.dtype, torch.float32)
    probabilities = weak.detach().softmax(dim=1, dtype=dtype)
    if classes is not None:
        if classes.shape != weak.shape[1:] or classes.dtype != torch.bool:
            raise ValueError(
                f"classes must be bool of shape ({weak.shape[1]},), got {classes.dtype} of shape {tuple(classes.shape)}"
            )
        probabilities = probabilities * classes
    confidence, labels = probabilities.max(dim=1)
    cross_entropy = F.cross_entropy(strong.to(dtype), labels, reduction="none")
    confident = (confidence >= threshold).to(dtype)
    # NaN is not >= anything: without this, a broken view would look like an unsure one and add 0.
    return (cross_entropy * confident.masked_fill(confidence.isnan(), torch.nan)).mean()

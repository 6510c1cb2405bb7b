"""The regulariser (Eq. 13): keeps the teacher's view in place while the image encoder below it changes."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F


def teacher_regularization(
    log_source_teacher: Tensor,
    source_labels: Tensor,
    teacher: Tensor,
    *,
    gini: Callable[[Tensor], Tensor],
    lambda2: float,
    lambda3: float,
) -> Tensor:
    """Keep the teacher correct on the source and confident on the target (Eq. 13).

    `lambda2 * KL(y || p_g(source)) + lambda3 * GI(p_g(target))`; the gradient reaches the image encoder. The KL
    divergence equals the cross entropy, because a label has zero entropy.

    Args:
        log_source_teacher: (S, C), the teacher's log-probabilities on the source batch.
        source_labels: (S,), int64.
        teacher: (B, C), the teacher's probabilities on the target batch.
        gini: `gini_mean` or `gini_balanced`.
        lambda2: weight of the source term.
        lambda3: weight of the target term, the ramp included.

    Returns:
        A 0-d tensor.
    """
    return lambda2 * F.nll_loss(log_source_teacher, source_labels) + lambda3 * gini(teacher)

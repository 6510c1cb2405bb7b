"""The classic distillation term `KL(sg(p_g) || p_h)` (Eq. 6, App. H), for comparison with the mixed view."""

import torch
from torch import Tensor


def kl_distillation(log_student: Tensor, log_teacher: Tensor, weights: Tensor | None = None) -> Tensor:
    """Compute the distillation loss of Hinton et al. 2015: `mean_b c_b KL(sg(p_g) || p_h)`.

    Args:
        log_student: (B, C), the student's log-probabilities.
        log_teacher: (B, C), the teacher's log-probabilities; detached here.
        weights: (B,), the sample weights `c_b`; all 1 by default.

    Returns:
        A 0-d tensor of the student's dtype.

    Raises:
        ValueError: if a shape is not the one given above.
    """
    if log_student.shape != log_teacher.shape:
        raise ValueError(
            f"log_teacher {tuple(log_teacher.shape)} must have log_student's shape {tuple(log_student.shape)}"
        )
    log_teacher = log_teacher.detach()
    divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(dim=1)
    if weights is None:
        return divergence.mean()
    if weights.shape != divergence.shape:
        raise ValueError(f"weights must have shape {tuple(divergence.shape)}, got {tuple(weights.shape)}")
    return torch.mean(weights * divergence)

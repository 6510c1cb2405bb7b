"""The trade-off alpha between the task and the distillation term (Eq. 11, Table X): one number per sample.

Every alpha is a weight, not an objective: it is detached and lies in [0, 1] (`entropy_alpha` can exceed 1 by up to its
epsilon). Views are passed as log-probabilities, because `softmax(x).log()` is -inf where a view is certain.
"""

import torch
from torch import Tensor


def constant_alpha(log_student: Tensor, value: float = 0.5) -> Tensor:
    """Return the same alpha for every sample; 0.5 weights both terms equally (Table X, first row).

    Args:
        log_student: (B, C); determines the batch size, dtype and device.
        value: the weight of the task term.

    Returns:
        (B,), filled with `value`.
    """
    return log_student.new_full((log_student.shape[0],), value)


def entropy_alpha(log_student: Tensor, epsilon: float = 0.0) -> Tensor:
    """Compute alpha from the student's certainty (Table X, second row): `exp(-H(p_h))`.

    Args:
        log_student: (B, C), the student's log-probabilities.
        epsilon: added to `p` inside the logarithm; the released code uses 1e-5, the paper none.

    Returns:
        (B,), detached, of the student's dtype.
    """
    log_p = log_student.detach()
    p = log_p.exp()
    log_inside = (p + epsilon).log() if epsilon > 0 else log_p
    return (p * log_inside).sum(dim=1).exp()


def kl_alpha(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Compute alpha from the agreement of two views: `exp(-KL(p || q))`.

    `kl_alpha(log_student, log_teacher)` is Eq. 11. The released code computes `kl_alpha(log_teacher, log_student)`,
    because torch's `kl_div(log p_h, p_g)` is `KL(p_g || p_h)`.

    Args:
        log_p: (B, C), log-probabilities of the view that the expectation is taken over.
        log_q: (B, C), log-probabilities of the other view.

    Returns:
        (B,), detached, in [0, 1].

    Raises:
        ValueError: if the shapes differ.
    """
    if log_p.shape != log_q.shape:
        raise ValueError(f"log_q {tuple(log_q.shape)} must have the shape of log_p {tuple(log_p.shape)}")
    log_p, log_q = log_p.detach(), log_q.detach()
    divergence = (log_p.exp() * (log_p - log_q)).sum(dim=1)
    return torch.exp(-divergence.clamp(min=0))  # rounding can make the divergence of equal views negative

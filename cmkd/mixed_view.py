"""The mixed view of student and teacher (Eq. 8): the teacher shapes the student's gradient and receives none."""

from torch import Tensor


def mix_views(student: Tensor, teacher: Tensor) -> Tensor:
    """Average two views of the same samples, treating the teacher's as a constant (Eq. 8): `0.5 (p_h + sg(p_g))`.

    Args:
        student: (B, C), the student's probabilities `p_h`.
        teacher: (B, C), the teacher's probabilities `p_g`; detached here.

    Returns:
        (B, C) probabilities; they halve the student's gradient.

    Raises:
        ValueError: if the shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"teacher {tuple(teacher.shape)} must have the student's shape {tuple(student.shape)}")
    return 0.5 * (student + teacher.detach())

"""The mixed view of student and teacher (Eq. 8): the teacher bends the student's gradient, and gets none itself."""

from torch import Tensor


def mix_views(student: Tensor, teacher: Tensor) -> Tensor:
    """Average two views of the same samples, holding the teacher's constant (Eq. 8): `0.5 (p_h + sg(p_g))`.

    Args:
        student: (B, C), the student's probabilities `p_h`.
        teacher: (B, C), the teacher's probabilities `p_g`; detached here.

    Returns:
        (B, C) probabilities, with the student's gradient halved.

    Raises:
        ValueError: if the shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"teacher {tuple(teacher.shape)} must have the student's shape {tuple(student.shape)}")
    return 0.5 * (student + teacher.detach())

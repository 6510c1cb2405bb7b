"""The angle between two sparse residuals, without sums of squares that leave float64's range."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Angle:
    """Two vectors of one parameter.

    Attributes:
        first: the length of the first; infinite or NaN if it is not finite, NaN if the vector is unknown.
        second: that of the second.
        cosine: of the angle between them; 0 where one is zero, None where a length is not finite.
    """

    first: float
    second: float
    cosine: float | None


def angle_between(first: Tensor | None, second: Tensor | None, at_first: Tensor, at_second: Tensor) -> Angle:
    """Take the angle between two vectors of which the entries other than zero are given.

    Args:
        first: float64, shape (n,); None if unknown.
        second: float64, shape (m,); None if unknown.
        at_first: slots of `first` that meet one of `second`, int64, shape (k,).
        at_second: the slots of `second` that they meet.
    """
    lengths = length(first), length(second)
    if first is None or second is None or not all(map(math.isfinite, lengths)):
        return Angle(lengths[0], lengths[1], None)
    if not all(lengths):
        return Angle(lengths[0], lengths[1], 0.0)
    # dividing first, as products of float64's extremes leave its range
    cosine = float((first[at_first] / lengths[0]) @ (second[at_second] / lengths[1]))
    return Angle(lengths[0], lengths[1], _clamp(cosine))


def joint_cosine(angles: Sequence[Angle]) -> float | None:
    """Take the cosine between two vectors of all parameters; None if one of them is zero, unknown or not finite."""
    first, second = math.hypot(*(angle.first for angle in angles)), math.hypot(*(angle.second for angle in angles))
    if not (first and second and math.isfinite(first) and math.isfinite(second)):
        return None
    parts = ((angle.cosine or 0.0) * (angle.first / first) * (angle.second / second) for angle in angles)
    return _clamp(math.fsum(parts))


def length(vector: Tensor | None) -> float:
    """Take the Euclidean length; NaN of an unknown vector, infinite or NaN if an entry is."""
    if vector is None:
        return math.nan
    largest = float(vector.abs().max()) if vector.numel() else 0.0
    if not largest or not math.isfinite(largest):
        return largest
    return largest * float(torch.linalg.vector_norm(vector / largest))


def _clamp(cosine: float) -> float:
    return max(-1.0, min(1.0, cosine))

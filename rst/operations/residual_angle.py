"""The angle between two sparse residuals, computed without sums of squares that overflow float64."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Angle:
    """The lengths of two vectors of one parameter, and the angle between them.

    Attributes:
        first: base-2 logarithm of the first length, because lengths may exceed float64's range: minus infinity if it is
            zero, NaN if an entry is not finite or the vector is unknown.
        second: the same of the second length.
        cosine: cosine of the angle between them; 0 if one is zero, None if one is not finite or unknown.
    """

    first: float
    second: float
    cosine: float | None


def angle_between(first: Tensor | None, second: Tensor | None, at_first: Tensor, at_second: Tensor) -> Angle:
    """Compute the angle between two vectors of which the nonzero entries are given.

    Args:
        first: float64, shape (n,); None if unknown.
        second: float64, shape (m,); None if unknown.
        at_first: indices in `first` of the entries at common positions, int64, shape (k,).
        at_second: the matching indices in `second`.
    """
    lengths = (first_length, first_unit), (second_length, second_unit) = _normalize(first), _normalize(second)
    if any(math.isnan(length) for length, _ in lengths):
        return Angle(first_length, second_length, None)
    if -math.inf in (first_length, second_length):
        return Angle(first_length, second_length, 0.0)
    cosine = float(first_unit[at_first] @ second_unit[at_second])
    return Angle(first_length, second_length, _clamp(cosine))


def joint_cosine(angles: Sequence[Angle]) -> float | None:
    """Compute the cosine between two vectors of all parameters; None if one of them is zero, unknown or not finite."""
    first = _shares([angle.first for angle in angles])
    second = _shares([angle.second for angle in angles])
    if first is None or second is None:
        return None
    parts = (angle.cosine * a * b for angle, a, b in zip(angles, first, second, strict=True) if angle.cosine)
    return _clamp(math.fsum(parts))


def log_length(vector: Tensor | None) -> float:
    """Compute the base-2 logarithm of the Euclidean length, as in `Angle`."""
    return _normalize(vector)[0]


def _normalize(vector: Tensor | None) -> tuple[float, Tensor]:
    """Return the logarithm of a vector's length, and the vector divided by its length."""
    if vector is None:
        return math.nan, torch.empty(0)
    largest = float(vector.abs().max()) if vector.numel() else 0.0
    if not largest:
        return -math.inf, vector
    if not math.isfinite(largest):
        return math.nan, vector
    scaled = vector / largest
    length = float(torch.linalg.vector_norm(scaled))
    return math.log2(largest) + math.log2(length), scaled / length


def _shares(logarithms: Sequence[float]) -> list[float] | None:
    """Return the lengths of parts divided by the total length; None if that is zero or unknown."""
    if any(map(math.isnan, logarithms)) or max(logarithms, default=-math.inf) == -math.inf:
        return None
    longest = max(logarithms)
    lengths = [2.0 ** (logarithm - longest) for logarithm in logarithms]
    whole = math.hypot(*lengths)
    return [length / whole for length in lengths]


def _clamp(cosine: float) -> float:
    return max(-1.0, min(1.0, cosine))

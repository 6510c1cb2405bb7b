"""A pass over the whole target training set: features, predictions, and pseudo-labels from class centroids."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmkd.evaluation import eval_mode
from cmkd.objective import Student, TargetBatch


class TargetViews(NamedTuple):
    """Features (N, D) and logits (N, C), both float32 or better, and positions (N,) of the images of one pass."""

    features: Tensor
    logits: Tensor
    positions: Tensor


def view_target(student: Student, target: Iterable[TargetBatch]) -> TargetViews:
    """Run the student over the target in eval mode; every module returns to its own mode afterwards.

    Raises:
        ValueError: if the target has no batches.
    """
    features, logits, positions = [], [], []
    with torch.no_grad(), eval_mode(student):
        for batch in target:
            batch_features = student.encoder(batch.images)
            features.append(batch_features)
            logits.append(student.head(batch_features))
            positions.append(batch.positions)
    if not features:
        raise ValueError("target has no batches to take pseudo-labels from")
    return TargetViews(_full_precision(torch.cat(features)), _full_precision(torch.cat(logits)), torch.cat(positions))


def centroid_labels(features: Tensor, probabilities: Tensor) -> Tensor:
    """Label each sample with its nearest class centroid by cosine distance (SHOT, Sec. 3.3).

    The centroids are first the means of the features weighted by the class probabilities, then, once, the means under
    the labels of the first round. As in the released code, a constant 1 is appended to the features before they are
    normalised to length 1. A class that is no sample's argmax gets no centroid, nor does a class without samples after
    the first round get one in the second.

    Args:
        features: (N, D), floating point.
        probabilities: (N, C), each row sums to 1.

    Returns:
        (N,), int64.

    Raises:
        ValueError: if a shape is not the one given above, or a number is NaN or infinite.
    """
    if features.ndim != 2 or probabilities.ndim != 2 or len(features) != len(probabilities) or not len(features):
        raise ValueError(
            "features and probabilities must be non-empty (N, D) and (N, C), "
            f"got {tuple(features.shape)} and {tuple(probabilities.shape)}"
        )
    # One such row would make every centroid NaN, and every label 0.
    broken = int((~(features.isfinite().all(dim=1) & probabilities.isfinite().all(dim=1))).sum())
    if broken:
        raise ValueError(f"{broken} of {len(features)} samples have features or probabilities that are not finite")
    with torch.autocast(features.device.type, enabled=False):
        points = F.normalize(torch.cat([features, features.new_ones(len(features), 1)], dim=1))
        members = probabilities.to(points.dtype)
        classes = members.argmax(dim=1).bincount().nonzero().squeeze(1)
        labels = _nearest(points, members.T @ points, classes)
        members = F.one_hot(labels, members.shape[1]).to(points.dtype)
        return _nearest(points, members.T @ points, torch.unique(labels))


def _nearest(points: Tensor, class_sums: Tensor, classes: Tensor) -> Tensor:
    """Return the most similar class by cosine; a centroid's scale, and with it the class's mass, does not matter."""
    return classes[(points @ F.normalize(class_sums[classes]).T).argmax(dim=1)]


class TargetMemory(nn.Module):
    """Holds a pseudo-label, or another non-negative number, for each image of the target training set, by its position.

    The numbers are a buffer: they are saved with the objective that owns the memory, and loaded whatever their count.
    """

    values: Tensor

    def __init__(self) -> None:
        """Start empty."""
        super().__init__()
        self.register_buffer("values", torch.empty(0, dtype=torch.int64))

    def store(self, positions: Tensor, values: Tensor) -> None:
        """Replace all values by those (N,) of the images at these positions (N,), int64."""
        self.values = torch.full((int(positions.max()) + 1,), -1, dtype=values.dtype, device=values.device)
        self.values[positions] = values

    def store_centroid_labels(self, student: Student, target: Iterable[TargetBatch]) -> None:
        """Replace all values by the labels that `centroid_labels` gives the whole target training set."""
        views = view_target(student, target)
        self.store(views.positions, centroid_labels(views.features, views.logits.softmax(dim=1)))

    def at(self, positions: Tensor) -> Tensor:
        """Return the values (B,) of the images at these positions (B,), int64.

        Raises:
            RuntimeError: if nothing is stored yet, or an image was not in the last pass.
        """
        seen = len(self.values)
        if not seen:
            raise RuntimeError("there are no pseudo-labels: call refresh before the first iteration")
        positions = positions.to(self.values.device)
        values = self.values[positions.clamp(max=seen - 1)]
        missing = positions[(positions >= seen) | (values < 0)]
        if len(missing):
            raise RuntimeError(f"the target image at position {int(missing[0])} was not in the last refresh")
        return values

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        saved = state_dict.get(prefix + "values")
        if saved is not None:
            self.values = torch.empty_like(saved, device=self.values.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _full_precision(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))

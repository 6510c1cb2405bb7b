"""The teacher of an ImageNet backbone: prototypes of the classes, learned on the labelled source domain (App. E)."""

import torch
from torch import Tensor, nn

from cmkd import PrototypeTeacher, relationship_prototypes
from examples.uda.image_pass import ImagePass

SOURCE_IMAGES = 10_000
"""At most this many, evenly spaced: VisDA-2017's 152,397 times 21,843 ImageNet-21k probabilities fill no memory."""


@torch.no_grad()
def prototype_teacher(
    encoder: nn.Module, classifier: nn.Module, source: ImagePass, classes: int, *, logit_factor: float = 1.0
) -> PrototypeTeacher:
    """Learn the relationship of categories on half of the source, choose its penalty on the other (1:1, App. E).

    Args:
        encoder: pretrained, in eval mode, on the device of the images.
        classifier: its pretrained classifier.
        source: a pass over the source's training images, without augmentation.
        classes: number of the task's classes.
        logit_factor: calibrates the classifier while the prototypes are learned, see `Preset.prototype_logit_factor`.
    """
    views = [(logit_factor * classifier(encoder(batch.images))).softmax(dim=1).cpu() for batch in source]
    probabilities, labels = torch.cat(views), source.labels
    train = half_of_each_class(labels)
    prototypes = relationship_prototypes(
        probabilities[train], labels[train], probabilities[~train], labels[~train], classes
    )
    return PrototypeTeacher(classifier, prototypes)


def half_of_each_class(labels: Tensor) -> Tensor:
    """(N,) bool: every other image of each class, the first included."""
    chosen = torch.zeros_like(labels, dtype=torch.bool)
    for label in labels.unique():
        chosen[(labels == label).nonzero().squeeze(1)[::2]] = True
    return chosen

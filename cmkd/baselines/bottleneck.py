"""A head with a bottleneck between the encoder's features and the classifier, as published with SHOT and DSAN."""

from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from cmkd.objective import Student


class BottleneckHead(nn.Module):
    """Classifies features through a bottleneck: `classifier(bottleneck(x))`."""

    def __init__(self, dim: int, classes: int, width: int = 256, *, normed: bool = False) -> None:
        """Create a head for features of width `dim`.

        Args:
            dim: width of the features.
            classes: number of logits.
            width: width of the bottleneck; both originals use 256.
            normed: use SHOT's head: BatchNorm after the bottleneck's linear layer and a classifier with weight
                normalisation, both initialised from Xavier's normal distribution. Otherwise use DSAN's: two linear
                layers with nothing in between.

        Raises:
            ValueError: if a size is not positive.
        """
        super().__init__()
        if min(dim, classes, width) <= 0:
            raise ValueError(f"dim, classes and width must be positive, got {dim}, {classes} and {width}")
        linear, classifier = nn.Linear(dim, width), nn.Linear(width, classes)
        self.bottleneck: nn.Module = linear
        self.classifier = classifier
        if normed:
            for layer in (linear, classifier):
                nn.init.xavier_normal_(layer.weight)
                nn.init.zeros_(layer.bias)
            self.bottleneck = nn.Sequential(linear, nn.BatchNorm1d(width))
            weight_norm(classifier)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, classes) of features (B, dim)."""
        logits: Tensor = self.classifier(self.bottleneck(features))
        return logits


def bottleneck_head(student: Student) -> BottleneckHead:
    """Return the student's head. Raises `ValueError` if it is not of the kind that the method's `task_head` returns."""
    if not isinstance(student.head, BottleneckHead):
        raise ValueError(f"the method has a bottleneck: its head is task_head's, got {type(student.head).__name__}")
    return student.head

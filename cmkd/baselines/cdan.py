"""CDAN+E: a domain discriminator that sees features and predictions together, and certain samples more."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmkd.baselines.adversary import at_unit_scale, domain_discriminator, domain_loss, reverse_gradient, steep_ramp
from cmkd.baselines.views import sample_entropy, view_both_domains
from cmkd.log_view import log_view
from cmkd.objective import DomainBatch, Objective, Phase, Student

LARGEST_MAP = 4096
"""Up to this many features times classes the multilinear map is exact, above it randomised (CDAN)."""


class MultilinearMap(nn.Module):
    """Outer product of features and predictions, or random products of them that estimate it (CDAN)."""

    feature_matrix: Tensor
    prediction_matrix: Tensor

    def __init__(self, feature_dim: int, classes: int, randomised_dim: int = 1024) -> None:
        """Draw the fixed random matrices if `feature_dim * classes` is over 4,096; they are saved with the module."""
        super().__init__()
        self.randomised = feature_dim * classes > LARGEST_MAP
        self.output_dim = randomised_dim if self.randomised else feature_dim * classes
        if self.randomised:
            self.register_buffer("feature_matrix", torch.randn(feature_dim, randomised_dim))
            self.register_buffer("prediction_matrix", torch.randn(classes, randomised_dim))

    def forward(self, features: Tensor, predictions: Tensor) -> Tensor:
        """Map features (B, D) and predictions (B, C) to (B, `output_dim`)."""
        if not self.randomised:
            return (predictions[:, :, None] * features[:, None, :]).flatten(1)
        products = (features @ self.feature_matrix) * (predictions.to(features.dtype) @ self.prediction_matrix)
        return products / math.sqrt(self.output_dim)


def certainty_weights(logits: Tensor) -> Tensor:
    """Weigh samples by `1 + exp(-H)` of their predictions (CDAN): 2 if certain. (B,), detached."""
    return 1 + (-sample_entropy(logits.detach())).exp()


class CDAN(Objective):
    """Source cross entropy plus a conditional domain discriminator with entropy conditioning (CDAN+E).

    Long et al., "Conditional Adversarial Domain Adaptation", NeurIPS 2018; lambda is 1, the reversal's strength
    DANN's schedule. The predictions are constants in the map, as in both common implementations, and in the weights,
    so the adversary moves the encoder through the features alone; each domain's weights are scaled to the same sum.
    The two differ on the weights. The authors' code scales each domain's as here, but sends their gradient, reversed,
    back through the predictions. The Transfer-Learning-Library takes them as constants, as here, but scales both
    domains' to one common sum.
    Unlike the paper's, the features come into the map at a fixed scale: see `at_unit_scale`.
    """

    def __init__(
        self,
        feature_dim: int,
        classes: int,
        *,
        weight: float = 1.0,
        hidden: int = 1024,
        randomised_dim: int = 1024,
        label_smoothing: float = 0.1,
    ) -> None:
        """Build the map and the discriminator.

        Args:
            feature_dim: D of the encoder's features (B, D).
            classes: C of the head's logits (B, C).
            weight: lambda of the domain loss.
            hidden: width of the discriminator.
            randomised_dim: width of the randomised map, used where D * C is over 4,096.
            label_smoothing: of the source's cross entropy.
        """
        super().__init__()
        self.weight = weight
        self.label_smoothing = label_smoothing
        self.map = MultilinearMap(feature_dim, classes, randomised_dim)
        self.discriminator = domain_discriminator(self.map.output_dim, hidden)

    def phases(self, student: Student, batch: DomainBatch, *, iteration: int, max_iterations: int) -> Iterator[Phase]:
        """Yield the one phase, which trains everything, the discriminator with its own sign."""
        views = view_both_domains(student, batch)
        classification = F.cross_entropy(views.source_logits, batch.source_labels, label_smoothing=self.label_smoothing)
        strength = steep_ramp(iteration, max_iterations)
        domain = domain_loss(
            self._domain_logits(views.source_features, views.source_logits, strength),
            self._domain_logits(views.target_features, views.target_logits, strength),
            certainty_weights(views.source_logits),
            certainty_weights(views.target_logits),
        )
        yield Phase(classification + self.weight * domain, {"classification": classification, "domain": domain})

    def _domain_logits(self, features: Tensor, logits: Tensor, strength: float) -> Tensor:
        predictions = log_view(logits.detach()).exp()
        domain_logits: Tensor = self.discriminator(
            self.map(reverse_gradient(at_unit_scale(features), strength), predictions)
        )
        return domain_logits

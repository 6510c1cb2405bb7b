"""CDAN+E: a domain discriminator that reads features and predictions together and weights certain samples more."""

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
"""The multilinear map is exact up to this many features times classes, and randomised above (CDAN)."""


class MultilinearMap(nn.Module):
    """Outer product of features and predictions, or a randomised estimate of it (CDAN)."""

    feature_matrix: Tensor
    prediction_matrix: Tensor

    def __init__(self, feature_dim: int, classes: int, randomised_dim: int = 1024) -> None:
        """Draw fixed random matrices if `feature_dim * classes` is over 4,096; they are saved with the module."""
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
    """Return sample weights (B,), `1 + exp(-H)` of the predictions (CDAN), detached: 2 for a certain prediction."""
    return 1 + (-sample_entropy(logits.detach())).exp()


class CDAN(Objective):
    """Source cross entropy plus a conditional domain discriminator with entropy conditioning (CDAN+E).

    Long et al., "Conditional Adversarial Domain Adaptation", NeurIPS 2018; lambda is 1, and the strength of the
    reversal follows DANN's schedule. The predictions are constants in the map, as in both common implementations, and
    in the weights, so the adversary trains the encoder through the features alone. The weights of both domains are
    scaled to the same sum.

    The two implementations differ in the weights. The authors' code scales each domain's as here, but sends their
    reversed gradient back through the predictions. The Transfer-Learning-Library treats them as constants, as here, but
    scales both domains' to one common sum.

    Unlike in the paper, the features enter the map at a fixed scale: see `at_unit_scale`.
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
            weight: lambda, the weight of the domain loss.
            hidden: width of the discriminator.
            randomised_dim: width of the randomised map, used where D * C is over 4,096.
            label_smoothing: label smoothing of the source cross entropy.
        """
        super().__init__()
        self.weight = weight
        self.label_smoothing = label_smoothing
        self.map = MultilinearMap(feature_dim, classes, randomised_dim)
        self.discriminator = domain_discriminator(self.map.output_dim, hidden)

    def phases(self, student: Student, batch: DomainBatch, *, iteration: int, max_iterations: int) -> Iterator[Phase]:
        """Yield a single phase, which trains every part; the encoder receives the reversed domain gradient."""
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

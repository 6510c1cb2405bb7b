"""DANN: features from which a discriminator cannot tell the domains apart."""

from collections.abc import Iterator

from torch import Tensor
from torch.nn import functional as F

from cmkd.baselines.adversary import at_unit_scale, domain_discriminator, domain_loss, reverse_gradient, steep_ramp
from cmkd.baselines.views import view_both_domains
from cmkd.objective import DomainBatch, Objective, Phase, Student


class DANN(Objective):
    """Source cross entropy plus a domain discriminator behind a gradient reversal on the features.

    Ganin et al., "Domain-Adversarial Training of Neural Networks", JMLR 2016. The strength of the reversal follows
    `2 / (1 + exp(-10 p)) - 1` (Sec. 5.2.2). The discriminator is trained at the loop's rate for the objective's modules
    and, unlike in the paper, reads the features at a fixed scale: see `at_unit_scale`.
    """

    def __init__(
        self, feature_dim: int, *, weight: float = 1.0, hidden: int = 1024, label_smoothing: float = 0.1
    ) -> None:
        """Build the discriminator.

        Args:
            feature_dim: D of the encoder's features (B, D).
            weight: weight of the domain loss.
            hidden: width of the discriminator.
            label_smoothing: label smoothing of the source cross entropy.
        """
        super().__init__()
        self.weight = weight
        self.label_smoothing = label_smoothing
        self.discriminator = domain_discriminator(feature_dim, hidden)

    def phases(self, student: Student, batch: DomainBatch, *, iteration: int, max_iterations: int) -> Iterator[Phase]:
        """Yield a single phase, which trains every part; the encoder receives the reversed domain gradient."""
        views = view_both_domains(student, batch)
        classification = F.cross_entropy(views.source_logits, batch.source_labels, label_smoothing=self.label_smoothing)
        strength = steep_ramp(iteration, max_iterations)
        domain = domain_loss(
            self._domain_logits(views.source_features, strength),
            self._domain_logits(views.target_features, strength),
        )
        yield Phase(classification + self.weight * domain, {"classification": classification, "domain": domain})

    def _domain_logits(self, features: Tensor, strength: float) -> Tensor:
        domain_logits: Tensor = self.discriminator(reverse_gradient(at_unit_scale(features), strength))
        return domain_logits

"""SSRT: makes a ViT's predictions robust to an offset taken from another target image, with safe training."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cmkd.baselines.adversary import domain_discriminator, domain_loss, reverse_gradient
from cmkd.baselines.safe_training import SafeTraining
from cmkd.baselines.views import split_domains
from cmkd.baselines.vision_transformer import ViTTokens, vit_tokens
from cmkd.log_view import log_view
from cmkd.objective import DomainBatch, Objective, Phase, Student
from cmkd.ramp import sigmoid_ramp

REVERSAL_ITERATIONS = 1000
"""Length of the gradient reversal's ramp in the released code, whatever the length of the run."""


def perturb(tokens: Tensor, strength: float) -> Tensor:
    """Add to each image's tokens (T, N, D) the scaled offset to the previous image's in the batch, as a constant."""
    return tokens + strength * (tokens.roll(1, dims=0) - tokens).detach()


def self_refinement_loss(teacher_logits: Tensor, student_logits: Tensor, confidence: float = 0.4) -> Tensor:
    """Compute the mean `KL(teacher || student)` of the samples with a teacher more certain than `confidence` (SSRT).

    As in the released code, the gradient flows into both views.

    Args:
        teacher_logits: (B, C).
        student_logits: (B, C).
        confidence: threshold on the teacher's largest probability.

    Returns:
        A 0-d tensor, float32 or better; 0 if no sample is certain enough.
    """
    log_teacher, log_student = log_view(teacher_logits), log_view(student_logits)
    divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(dim=1)
    confident = (log_teacher.exp().amax(dim=1) > confidence).to(divergence.dtype)
    return (confident * divergence).sum() / confident.sum().clamp(min=1)


class SSRT(Objective):
    """Source cross entropy, a domain discriminator, and self-refinement between plain and perturbed target views.

    Sun et al., "Safe Self-Refinement for Transformer-based Domain Adaptation", CVPR 2022. In each iteration, one of
    `layers` is drawn, at which the target's tokens are perturbed by another target image's. Which of the plain and
    perturbed views teaches the other is random. The strength of `SafeTraining` scales the perturbation and the weight
    of the loss; safe training takes snapshots of student and discriminator and may restore them at the start of an
    iteration. The domain loss is the released code's: DANN's, counted twice, with a reversal that grows from 0 to 0.046
    in 1,000 iterations and to 0.1 in the end. (Its discriminator has two layers; here it has the three of DANN and
    CDAN.)
    """

    def __init__(
        self,
        feature_dim: int,
        *,
        weight: float = 0.2,
        perturbation: float = 0.3,
        layers: tuple[int, ...] | None = None,
        confidence: float = 0.4,
        plain_teacher_chance: float = 0.5,
        domain_weight: float = 1.0,
        hidden: int = 1024,
        interval: int = 1000,
        scales: int = 4,
        label_smoothing: float = 0.1,
    ) -> None:
        """Build the discriminator and start safe training.

        Args:
            feature_dim: D of the encoder's features (B, D).
            weight: beta of the self-refinement loss.
            perturbation: alpha, the share of the offset that is added.
            layers: blocks before which tokens may be perturbed; by default the thirds of the depth, which are the
                published (0, 4, 8) for twelve blocks.
            confidence: threshold on the teacher's largest probability.
            plain_teacher_chance: probability that the plain view is the teacher.
            domain_weight: weight of the domain loss.
            hidden: width of the discriminator.
            interval: iterations between snapshots and checks of diversity.
            scales: number of scales of the check besides the whole interval.
            label_smoothing: label smoothing of the source cross entropy.

        Raises:
            ValueError: if `interval` is not positive.
        """
        super().__init__()
        self.weight = weight
        self.perturbation = perturbation
        self.layers = layers
        self.confidence = confidence
        self.plain_teacher_chance = plain_teacher_chance
        self.domain_weight = domain_weight
        self.label_smoothing = label_smoothing
        self.discriminator = domain_discriminator(feature_dim, hidden)
        self.safety = SafeTraining(interval, scales)

    def phases(self, student: Student, batch: DomainBatch, *, iteration: int, max_iterations: int) -> Iterator[Phase]:
        """Yield a single phase, which trains every part; the encoder receives the reversed domain gradient.

        Raises:
            ValueError: if the encoder is not a ViT, or lacks a block that `layers` names.
        """
        tokens = vit_tokens(student.encoder)
        layer = self._draw_layer(tokens.depth)
        strength = self.safety.begin(iteration, student, self.discriminator)
        source_size, target_size = len(batch.source_images), len(batch.target_images)

        features = self._features(tokens, batch, layer, self.perturbation * strength)
        logits = student.head(features)
        perturbed_logits = logits[source_size + target_size :]
        views = split_domains(features[:-target_size], logits[:-target_size], source_size)
        self.safety.record(iteration, len(torch.unique(views.target_logits.argmax(dim=1))))

        classification = F.cross_entropy(views.source_logits, batch.source_labels, label_smoothing=self.label_smoothing)
        reversal = 0.1 * sigmoid_ramp(iteration, REVERSAL_ITERATIONS, clip=False)
        domain = 2 * domain_loss(
            self.discriminator(reverse_gradient(views.source_features, reversal)),
            self.discriminator(reverse_gradient(views.target_features, reversal)),
        )
        plain_teaches = torch.rand(()).item() < self.plain_teacher_chance
        teacher, pupil = views.target_logits, perturbed_logits
        if not plain_teaches:
            teacher, pupil = pupil, teacher
        refinement = self_refinement_loss(teacher, pupil, self.confidence)
        total = classification + self.domain_weight * domain + self.weight * strength * refinement
        yield Phase(total, {"classification": classification, "domain": domain, "refinement": refinement})

    def get_extra_state(self) -> dict[str, Any]:
        """Return the state of safe training, snapshot included, for `state_dict`."""
        return self.safety.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the state of safe training."""
        self.safety.load_state_dict(state)

    def _draw_layer(self, depth: int) -> int:
        layers = self.layers or (0, depth // 3, 2 * depth // 3)
        if not all(0 <= layer < depth for layer in layers):
            raise ValueError(f"layers must name blocks 0 to {depth - 1} of the encoder, got {layers}")
        return layers[int(torch.randint(len(layers), ()))]

    def _features(self, tokens: ViTTokens, batch: DomainBatch, layer: int, strength: float) -> Tensor:
        """Return features of the source, the target, and the target perturbed before block `layer`."""
        plain = tokens.run(tokens.embed(torch.cat([batch.source_images, batch.target_images])), last=layer)
        perturbed = perturb(plain[len(batch.source_images) :], strength)
        return tokens.finish(tokens.run(torch.cat([plain, perturbed]), first=layer))

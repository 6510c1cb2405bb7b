"""CDTrans: cross-attention between paired source and target images in the ViT teaches the target branch."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from cmkd.baselines.source_first import SourceFirst
from cmkd.baselines.vision_transformer import ViTTokens, vit_tokens
from cmkd.log_view import log_view
from cmkd.objective import DomainBatch, Phase, Student


class Pairs(NamedTuple):
    """Indices of the paired source and target images of a batch: two tensors (P,), int64."""

    source: Tensor
    target: Tensor


def two_way_pairs(
    source_features: Tensor, target_features: Tensor, source_labels: Tensor, target_labels: Tensor
) -> Pairs:
    """Pair each source image with its nearest target image and vice versa; keep pairs of one class (CDTrans).

    Args:
        source_features: (S, D), compared by cosine.
        target_features: (T, D).
        source_labels: (S,), int64.
        target_labels: (T,), int64 pseudo-labels.

    Returns:
        Up to S + T distinct pairs; none if no nearest neighbours agree on the class.
    """
    similarity = F.normalize(source_features.detach()) @ F.normalize(target_features.detach()).T
    source_size, target_size = similarity.shape
    everyone = torch.arange(max(source_size, target_size), device=similarity.device)
    source = torch.cat([everyone[:source_size], similarity.argmax(dim=0)])
    target = torch.cat([similarity.argmax(dim=1), everyone[:target_size]])
    unique = torch.unique(torch.stack([source, target]), dim=1)
    agree = source_labels[unique[0]] == target_labels[unique[1]]
    return Pairs(unique[0, agree], unique[1, agree])


def distillation_loss(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """Compute the mean cross entropy `-sum_k q_k log p_k` of the student's p under the teacher's q, from logits (B, C).

    As in the released code, the gradient flows into both. The result is 0-d, and 0 for an empty batch.
    """
    return _mean_or_zero(-(log_view(teacher_logits).exp() * log_view(student_logits)).sum(dim=1))


def _mean_or_zero(losses: Tensor) -> Tensor:
    return losses.sum() / max(len(losses), 1)


class CDTrans(SourceFirst):
    """Three branches with shared weights: source, target, and source-to-target cross-attention on the pairs.

    Xu et al., "CDTrans: Cross-domain Transformer for Unsupervised Domain Adaptation", ICLR 2022. The loss is the sum of
    the source cross entropy, the cross entropy of the paired target images with their centre-aware pseudo-labels (from
    centroids, in `refresh`), and the distillation from the cross branch to the target branch. In each block, the cross
    branch attends from the source tokens to the target tokens; it starts as the target tokens, as in the released code.

    Differences: pairs are found in each batch with its current features, whereas the paper searches both data sets (an
    objective sees no pass over the source). The paper starts from a model trained on the source; here the first
    `source_fraction` of the iterations does that training.
    """

    def __init__(self, *, source_fraction: float = 0.2, label_smoothing: float = 0.1) -> None:
        """Set the share of iterations on the source alone, and the label smoothing of the source cross entropy.

        Raises:
            ValueError: if `source_fraction` is not between 0 and 1.
        """
        super().__init__(source_fraction=source_fraction, label_smoothing=label_smoothing)

    def phases(self, student: Student, batch: DomainBatch, *, iteration: int, max_iterations: int) -> Iterator[Phase]:
        """Yield a single phase, which trains the encoder and the head.

        Raises:
            ValueError: if the encoder is not a ViT.
            RuntimeError: after the source iterations, if `refresh` was not called or did not see an image of the batch.
        """
        vit_tokens(student.encoder)  # fail now rather than after the source iterations
        yield from super().phases(student, batch, iteration=iteration, max_iterations=max_iterations)

    def target_phase(self, student: Student, batch: DomainBatch) -> Phase:
        """Return the loss of the three branches, which trains the encoder and the head."""
        tokens = vit_tokens(student.encoder)
        labels = self.pseudo_labels.at(batch.target_positions)
        source_size = len(batch.source_images)
        inputs, features = self._own_branches(tokens, batch)
        pairs = two_way_pairs(features[:source_size], features[source_size:], batch.source_labels, labels)
        mixed_features = self._cross_branch(tokens, inputs, pairs, source_size)
        # One call of the head: its batch statistics would be undefined for a single pair.
        own_logits, mixed_logits = student.head(torch.cat([features, mixed_features])).split_with_sizes(
            [len(features), len(mixed_features)]
        )
        classification = F.cross_entropy(
            own_logits[:source_size], batch.source_labels, label_smoothing=self.label_smoothing
        )
        target_logits = own_logits[source_size:][pairs.target]
        pseudo = _mean_or_zero(F.cross_entropy(target_logits, labels[pairs.target], reduction="none"))
        distillation = distillation_loss(mixed_logits, target_logits)
        terms = {"classification": classification, "pseudo": pseudo, "distillation": distillation}
        return Phase(classification + pseudo + distillation, terms, trains=("encoder", "head"))

    def _own_branches(self, tokens: ViTTokens, batch: DomainBatch) -> tuple[list[Tensor], Tensor]:
        """Return the tokens of both domains at the input of each block, and the final features (S + T, D)."""
        stream = tokens.embed(torch.cat([batch.source_images, batch.target_images]))
        inputs = []
        for index in range(tokens.depth):
            inputs.append(stream)
            stream = tokens.block(index, stream)
        return inputs, tokens.finish(stream)

    def _cross_branch(self, tokens: ViTTokens, inputs: list[Tensor], pairs: Pairs, source_size: int) -> Tensor:
        """Return features (P, D) from the pairs' cross-attention."""
        target = pairs.target + source_size
        stream = inputs[0][target]
        for index, both in enumerate(inputs):
            stream = tokens.cross_block(index, stream, both[pairs.source], both[target])
        return tokens.finish(stream)

"""PMTrans: a ViT trained on patch mixtures of both domains, which a third player makes difficult."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from cmkd.baselines.patch_mix import PatchShares, feature_mixup_loss, label_mixup_loss, label_shares, mix_patches
from cmkd.baselines.target_pass import TargetMemory, view_target
from cmkd.baselines.vision_transformer import ViTTokens, vit_tokens
from cmkd.objective import DomainBatch, Objective, Phase, Student, TargetBatch

ROWS_AT_ONCE = 1024
"""Number of rows per slice of the similarity matrix, which may not fit in memory (VisDA: 55,388 squared)."""


def neighbour_labels(features: Tensor, probabilities: Tensor, neighbours: int = 5) -> tuple[Tensor, Tensor]:
    """Label each sample with the mean sharpened prediction of its nearest neighbours, excluding itself.

    Predictions are sharpened and balanced as in the released code: `p_i^2 / sum_n p_ni^2`.

    Args:
        features: (N, D), compared by cosine similarity.
        probabilities: (N, C), each row sums to 1.
        neighbours: number of neighbours; at most N - 1 are used.

    Returns:
        Labels (N,), int64, and their confidences (N,), the largest mean of each sample.

    Raises:
        ValueError: if there are fewer than two samples.
    """
    if len(features) < 2:
        raise ValueError(f"features must have two samples or more to have neighbours, got {len(features)}")
    squared = probabilities.square()
    sharpened = squared / squared.sum(dim=0).clamp(min=torch.finfo(squared.dtype).tiny)
    points = F.normalize(features)
    count = min(neighbours, len(features) - 1)
    means = []
    with torch.autocast(features.device.type, enabled=False):
        for start in range(0, len(points), ROWS_AT_ONCE):
            similarity = points[start : start + ROWS_AT_ONCE] @ points.T
            similarity.diagonal(offset=start).fill_(-torch.inf)
            means.append(sharpened[similarity.topk(count, dim=1).indices].mean(dim=1))
    confidence, labels = torch.cat(means).max(dim=1)
    return labels, confidence


class PMTrans(Objective):
    """Source cross entropy plus mixup losses of patch-mixed images in feature and label space.

    Zhu, Bai and Wang, "Patch-Mix Transformer for Unsupervised Domain Adaptation: A Game Perspective", CVPR 2023.
    Source image i is mixed with target image i, as many pairs as the smaller domain of the batch has images. The label
    shares follow the attention of the class token, averaged over all blocks and heads.

    Differences: both losses keep the initial weight of the released code, softplus(-2), which is trained there;
    attention is a constant, renormalised over the patches (the released code applies a second softmax, and equal
    attention for the target); the pseudo-labels are those of the last `refresh`, not of a memory updated every
    iteration.
    """

    needs_target_pass = True

    def __init__(
        self,
        *,
        feature_weight: float = 0.127,
        label_weight: float = 0.127,
        neighbours: int = 5,
        label_smoothing: float = 0.1,
    ) -> None:
        """Set the weights of the losses, and initialise the distribution of the shares.

        Args:
            feature_weight: weight of the mixup loss in feature space.
            label_weight: weight of the mixup loss in label space.
            neighbours: number of neighbours that vote for a target image's pseudo-label.
            label_smoothing: label smoothing of the source cross entropy.
        """
        super().__init__()
        self.feature_weight = feature_weight
        self.label_weight = label_weight
        self.neighbours = neighbours
        self.label_smoothing = label_smoothing
        self.patch_shares = PatchShares()
        self.pseudo_labels = TargetMemory()
        self.confidences = TargetMemory()

    def refresh(self, student: Student, target: Iterable[TargetBatch]) -> None:
        """Compute pseudo-labels and confidences from nearest neighbours in the whole target training set."""
        views = view_target(student, target)
        labels, confidences = neighbour_labels(views.features, views.logits.softmax(dim=1), self.neighbours)
        self.pseudo_labels.store(views.positions, labels)
        self.confidences.store(views.positions, confidences)

    def phases(self, student: Student, batch: DomainBatch, *, iteration: int, max_iterations: int) -> Iterator[Phase]:
        """Yield a single phase, which trains every part; the gradient of the shares' distribution is reversed.

        Raises:
            ValueError: if the encoder is not a ViT with a class token.
            RuntimeError: if `refresh` was not called or did not see an image of the batch.
        """
        tokens = vit_tokens(student.encoder)
        pseudo_labels = self.pseudo_labels.at(batch.target_positions)
        confidences = self.confidences.at(batch.target_positions)
        size = len(batch.source_images)
        pairs = min(size, len(batch.target_images))

        features, attention = _features_and_attention(tokens, torch.cat([batch.source_images, batch.target_images]))
        shares = self.patch_shares(pairs, attention.shape[1]).to(features.device)
        source_share = label_shares(shares, attention[:pairs], attention[size : size + pairs])
        mixed_images = mix_patches(batch.source_images[:pairs], batch.target_images[:pairs], shares, tokens.patch_size)
        mixed_features = tokens.finish(tokens.run(tokens.embed(mixed_images)))
        logits = student.head(torch.cat([features, mixed_features]))

        classification = F.cross_entropy(logits[:size], batch.source_labels, label_smoothing=self.label_smoothing)
        source_labels = batch.source_labels[:pairs]
        feature_mixup = feature_mixup_loss(
            mixed_features, features[:pairs], features[size : size + pairs], source_labels, source_share
        )
        label_mixup = label_mixup_loss(
            logits[len(features) :], source_labels, pseudo_labels[:pairs], source_share, confidences[:pairs]
        )
        yield Phase(
            classification + self.feature_weight * feature_mixup + self.label_weight * label_mixup,
            {"classification": classification, "feature_mixup": feature_mixup, "label_mixup": label_mixup},
        )


def _features_and_attention(tokens: ViTTokens, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return features (B, D) and the class token's attention to the patches (B, N), averaged over blocks, detached."""
    stream = tokens.embed(images)
    attention = []
    for index in range(tokens.depth):
        with torch.no_grad():
            attention.append(tokens.class_attention(index, stream))
        stream = tokens.block(index, stream)
    return tokens.finish(stream), torch.stack(attention).mean(dim=0)

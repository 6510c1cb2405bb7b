"""PatchMix: mixes images of both domains patch by patch, and computes each domain's share in their labels."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmkd.baselines.adversary import reverse_gradient


class PatchShares(nn.Module):
    """Draws the share of the source in every patch from a Beta distribution that learns to maximise the loss.

    The parameters of the distribution are the softplus of learnable numbers that start at 1. Their gradient is
    reversed, which makes them the third player of PMTrans' game. (In the released code they minimise like the rest.)
    """

    def __init__(self) -> None:
        """Start with Beta(1.31, 1.31)."""
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(()))
        self.beta = nn.Parameter(torch.ones(()))

    def forward(self, images: int, patches: int) -> Tensor:
        """Draw shares (images, patches), float32, in [0, 1]."""
        alpha, beta = F.softplus(self.alpha.float()), F.softplus(self.beta.float())
        shares: Tensor = torch.distributions.Beta(alpha, beta).rsample((images, patches))
        return reverse_gradient(shares)


def mix_patches(source_images: Tensor, target_images: Tensor, shares: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Mix images (B, 3, H, W) of two domains with a share (B, N) of the source for each patch, row by row.

    A ViT's patch embedding is linear, so this equals mixing the embedded patches.
    """
    grid = (source_images.shape[2] // patch_size[0], source_images.shape[3] // patch_size[1])
    weights = F.interpolate(shares.reshape(-1, 1, *grid), size=source_images.shape[2:], mode="nearest")
    weights = weights.to(source_images.dtype)
    return weights * source_images + (1 - weights) * target_images


def label_shares(shares: Tensor, source_attention: Tensor, target_attention: Tensor) -> Tensor:
    """Compute the share of the source in the mixed image's label, with its patches weighted by attention (PMTrans).

    Args:
        shares: (B, N), share of the source in each patch.
        source_attention: (B, N), attention to the source image's patches; each row sums to 1.
        target_attention: (B, N), attention to the target image's patches; each row sums to 1.

    Returns:
        (B,), in [0, 1].
    """
    source = (shares * source_attention).sum(dim=1)
    target = ((1 - shares) * target_attention).sum(dim=1)
    return source / (source + target)


def feature_mixup_loss(
    mixed: Tensor, source: Tensor, target: Tensor, source_labels: Tensor, source_share: Tensor
) -> Tensor:
    """Pull mixed features towards the source features of their class and towards their target image (PMTrans).

    The cosine similarities to the source features, with a softmax over the batch, are compared with the pairs of equal
    labels; those to the target features are compared with the identity, as the target has no labels. The two losses of
    each image are weighted by its shares and averaged over the batch.

    Args:
        mixed: (B, D).
        source: (B, D); row i is part of the i-th mixed image.
        target: (B, D), likewise.
        source_labels: (B,), int64.
        source_share: (B,), share of the source in the mixed images' labels.

    Returns:
        A 0-d tensor.
    """
    mixed = F.normalize(mixed.float())
    # Products instead of a matrix product, which autocast would run in half precision.
    to_source = (mixed[:, None] * F.normalize(source.float())[None]).sum(dim=2).log_softmax(dim=1)
    to_target = (mixed[:, None] * F.normalize(target.float())[None]).sum(dim=2).log_softmax(dim=1)
    same_label = (source_labels[:, None] == source_labels[None]).to(to_source.dtype)
    source_loss = -(same_label * to_source).sum(dim=1)
    target_loss = -to_target.diagonal()
    return (source_share * source_loss + (1 - source_share) * target_loss).mean()


def label_mixup_loss(
    mixed_logits: Tensor,
    source_labels: Tensor,
    target_labels: Tensor,
    source_share: Tensor,
    target_confidence: Tensor,
) -> Tensor:
    """Compute the cross entropy of the mixed images with both labels, weighted by their shares (PMTrans).

    The target's pseudo-labels are weighted by their confidence, scaled so that equal confidences change nothing.

    Args:
        mixed_logits: (B, C).
        source_labels: (B,), int64.
        target_labels: (B,), int64 pseudo-labels.
        source_share: (B,), share of the source in the mixed images' labels.
        target_confidence: (B,), non-negative.

    Returns:
        A 0-d tensor.
    """
    target_share = 1 - source_share
    source_loss = F.cross_entropy(mixed_logits, source_labels, reduction="none")
    target_loss = F.cross_entropy(mixed_logits, target_labels, reduction="none")
    weights = target_share * target_confidence
    smallest = torch.finfo(weights.dtype).tiny
    target_mean = (weights * target_loss).sum() / weights.sum().detach().clamp(min=smallest) * target_share.mean()
    return (source_share * source_loss).mean() + target_mean

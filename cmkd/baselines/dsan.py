"""DSAN: aligns the features of each class across the domains by local maximum mean discrepancy."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmkd.baselines.adversary import steep_ramp
from cmkd.baselines.bottleneck import BottleneckHead, bottleneck_head
from cmkd.baselines.views import view_both_domains
from cmkd.log_view import log_view
from cmkd.objective import DomainBatch, Objective, Phase, Student


def gaussian_kernels(x: Tensor, multiple: float = 2.0, kernels: int = 5) -> Tensor:
    """Sum Gaussian kernels of all pairs of rows: `sum_k exp(-|x_i - x_j|^2 / (b * multiple^(k - kernels // 2)))`.

    Args:
        x: (N, D), floating point.
        multiple: ratio of neighbouring bandwidths.
        kernels: number of bandwidths; the middle one is b, the mean squared distance between different rows. The
            gradient flows through b, so scaling all rows changes nothing.

    Returns:
        (N, N), float32 or better.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    # Differences instead of a matrix product: they are exact on the diagonal, and autocast does not affect them.
    squared = (x[:, None] - x[None]).square().sum(dim=2)
    pairs = max(len(x) * (len(x) - 1), 1)
    middle = (squared.sum() / pairs).clamp(min=torch.finfo(squared.dtype).tiny)
    bandwidths = [middle * multiple ** (k - kernels // 2) for k in range(kernels)]
    return torch.stack([torch.exp(-squared / bandwidth) for bandwidth in bandwidths]).sum(dim=0)


def lmmd_loss(
    source_features: Tensor,
    target_features: Tensor,
    source_labels: Tensor,
    target_probabilities: Tensor,
    *,
    kernel_multiple: float = 2.0,
    kernels: int = 5,
) -> Tensor:
    """Compute the local maximum mean discrepancy between the domains (DSAN).

    For each class, this is the squared distance between the weighted means of both domains in the kernel's space,
    averaged over classes. A sample's weight is its share of the class's mass in its domain: one-hot labels on the
    source, probabilities on the target. As in the released code, only classes with a source label and a target argmax
    in the batch count; for the others, the formula divides 0 by 0.

    Args:
        source_features: (S, D).
        target_features: (T, D).
        source_labels: (S,), int64.
        target_probabilities: (T, C), each row sums to 1; treated as constants.
        kernel_multiple: ratio of neighbouring bandwidths.
        kernels: number of bandwidths.

    Returns:
        A 0-d tensor, float32 or better; 0 if the domains share no class in this batch.
    """
    kernel = gaussian_kernels(torch.cat([source_features, target_features]), kernel_multiple, kernels)
    target = target_probabilities.detach().to(kernel.dtype)
    source = F.one_hot(source_labels, target.shape[1]).to(kernel.dtype)
    predicted = F.one_hot(target.argmax(dim=1), target.shape[1])
    common = (source.sum(dim=0) > 0) & (predicted.sum(dim=0) > 0)
    if not common.any():
        return kernel.sum() * 0
    source_weights = source[:, common] / source[:, common].sum(dim=0)
    target_weights = target[:, common] / target[:, common].sum(dim=0)
    # With the signed weights w of both domains, w' K w is the squared distance of the two means.
    signed = torch.cat([source_weights, -target_weights])
    distances = (signed[:, None] * signed[None] * kernel[:, :, None]).sum(dim=(0, 1))
    return distances.mean()


class DSAN(Objective):
    """Source cross entropy plus the local maximum mean discrepancy of the encoder's features.

    Zhu et al., "Deep Subdomain Adaptation Network for Image Classification", TNNLS 2021. The weight is the released
    code's 0.5 times the ramp `2 / (1 + exp(-10 p)) - 1`. The paper computes the discrepancy on a 256-wide bottleneck
    before the classifier: set `bottleneck=256` and use the head that `task_head` returns. Otherwise it is computed on
    the encoder's features.

    The released code treats the kernels' bandwidth as a constant. Every step then shrinks the features, and the next
    bandwidth compensates. A linear classifier counteracts this; a head that starts with a BatchNorm (App. D) does not,
    and the features collapse to one point. Here the gradient flows through the bandwidth.
    """

    def __init__(
        self,
        *,
        weight: float = 0.5,
        kernel_multiple: float = 2.0,
        kernels: int = 5,
        bottleneck: int | None = None,
        label_smoothing: float = 0.1,
    ) -> None:
        """Set the weight and kernels of the discrepancy, and the kind of head.

        Args:
            weight: weight of the discrepancy.
            kernel_multiple: ratio of neighbouring bandwidths.
            kernels: number of bandwidths.
            bottleneck: width of the published head's bottleneck, 256; None for another kind of head.
            label_smoothing: label smoothing of the source cross entropy.
        """
        super().__init__()
        self.bottleneck = bottleneck
        self.weight = weight
        self.kernel_multiple = kernel_multiple
        self.kernels = kernels
        self.label_smoothing = label_smoothing

    def task_head(self, feature_dim: int, classes: int) -> BottleneckHead | None:
        """Return the published head if `bottleneck` is set."""
        return None if self.bottleneck is None else BottleneckHead(feature_dim, classes, self.bottleneck)

    def phases(self, student: Student, batch: DomainBatch, *, iteration: int, max_iterations: int) -> Iterator[Phase]:
        """Yield a single phase, which trains every part.

        Raises:
            ValueError: if `bottleneck` is set and the head has none.
        """
        if self.bottleneck is not None:
            head = bottleneck_head(student)
            student = Student(nn.Sequential(student.encoder, head.bottleneck), head.classifier)
        views = view_both_domains(student, batch)
        classification = F.cross_entropy(views.source_logits, batch.source_labels, label_smoothing=self.label_smoothing)
        discrepancy = lmmd_loss(
            views.source_features,
            views.target_features,
            batch.source_labels,
            log_view(views.target_logits).exp(),
            kernel_multiple=self.kernel_multiple,
            kernels=self.kernels,
        )
        weight = self.weight * steep_ramp(iteration, max_iterations)
        yield Phase(classification + weight * discrepancy, {"classification": classification, "lmmd": discrepancy})

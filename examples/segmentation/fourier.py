"""Fourier domain adaptation (Yang and Soatto 2020): source images take the target's low-frequency amplitudes."""

import torch
from torch import Tensor

from cmkd.segmentation import DenseStudent
from examples.segmentation.scene_batches import MEAN, STD, SceneBatch
from examples.segmentation.scene_objective import SceneObjective, source_loss


def swap_low_frequencies(source: Tensor, target: Tensor, beta: float) -> Tensor:
    """Give pictures the amplitudes that others have around frequency zero; the phases stay.

    Args:
        source: (B, 3, H, W), any scale.
        target: (B, 3, H, W), the same scale.
        beta: half the side of the swapped square, as a share of the shorter side (FDA: 0.01).

    Returns:
        (B, 3, H, W); it may leave the range of pixels.
    """
    spectrum, other = torch.fft.fft2(source), torch.fft.fft2(target)
    amplitude = torch.fft.fftshift(spectrum.abs(), dim=(-2, -1))
    wanted = torch.fft.fftshift(other.abs(), dim=(-2, -1))
    height, width = source.shape[-2:]
    reach = int(beta * min(height, width))
    rows = slice(height // 2 - reach, height // 2 + reach + 1)
    columns = slice(width // 2 - reach, width // 2 + reach + 1)
    amplitude[..., rows, columns] = wanted[..., rows, columns]
    amplitude = torch.fft.ifftshift(amplitude, dim=(-2, -1))
    return torch.fft.ifft2(torch.polar(amplitude, spectrum.angle())).real


def restyle(source: Tensor, target: Tensor, beta: float) -> Tensor:
    """`swap_low_frequencies` of normalised images, which are pixels in between."""
    mean, std = MEAN.to(source), STD.to(source)
    pixels = swap_low_frequencies(source * std + mean, target * std + mean, beta)
    return (pixels.clamp(0, 1) - mean) / std


def robust_entropy(log_p: Tensor, eta: float = 2.0) -> Tensor:
    """FDA's penalty of uncertain pixels: mean of `(H^2 + 0.001^2)^eta` with H the entropy over its maximum, 0-d."""
    entropy = -(log_p.exp() * log_p).sum(dim=1) / torch.tensor(log_p.shape[1]).log()
    return (entropy.square() + 1e-6).pow(eta).mean()


class FourierAdaptation(SceneObjective):
    """FDA in one round: the source in the target's style, and certainty on the target."""

    def __init__(self, *, beta: float, entropy_weight: float) -> None:
        """See `Settings` for the arguments."""
        super().__init__()
        self._beta = beta
        self._entropy_weight = entropy_weight

    def losses(self, student: DenseStudent, batch: SceneBatch, *, iteration: int) -> dict[str, Tensor]:
        """The restyled source's loss, and the target's entropy penalty."""
        restyled = restyle(batch.source_images, batch.target_images, self._beta)
        entropy = robust_entropy(student(batch.target_images))
        return {
            "source": source_loss(student, restyled, batch.source_labels),
            "entropy": self._entropy_weight * entropy,
        }

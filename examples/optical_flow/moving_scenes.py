"""Generated image pairs with known flow, in KITTI's folders and file formats: textures that shift and turn.

The first frame shows a texture over a texture; in the second each has moved rigidly. The flow of a pixel follows from
the motion alone, so it is exact; the file rounds it to 1/64 pixel.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from examples.optical_flow.kitti_png import encode_flow, write_png16


@dataclass(frozen=True)
class Motion:
    """A rotation about a centre, then a shift: `x -> R (x - centre) + centre + shift`, in pixels."""

    angle: float
    shift: Tensor
    centre: Tensor

    def move(self, points: Tensor) -> Tensor:
        """Where points (..., 2) go."""
        return (points - self.centre) @ self._rotation().T + self.centre + self.shift

    def move_back(self, points: Tensor) -> Tensor:
        """Where points (..., 2) came from."""
        return (points - self.centre - self.shift) @ self._rotation() + self.centre

    def _rotation(self) -> Tensor:
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float32)


@dataclass(frozen=True)
class MovingScenes:
    """A recipe: the same seed gives the same files.

    Attributes:
        height: of the images, in pixels.
        width: likewise.
        drift: mean shift in pixels along x and y, as a moving camera gives: the first thing a network learns.
        largest_shift: departure from the drift in pixels, along each axis.
        largest_angle: in radians.
        valid_share: share of the pixels, drawn at random, that get a ground truth: KITTI's is sparse as well.
        seed: of everything.
    """

    height: int = 48
    width: int = 64
    drift: tuple[float, float] = (6.0, 2.0)
    largest_shift: float = 4.0
    largest_angle: float = 0.05
    valid_share: float = 0.5
    seed: int = 0

    def write(self, root: Path, pairs: int) -> None:
        """Write `root/KittiFlow/training/{image_2,flow_occ}`."""
        folder = root / "KittiFlow" / "training"
        for name in ("image_2", "flow_occ"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(pairs):
            first, second, flow, valid = self.scene(number)
            to_pil_image(first).save(folder / "image_2" / f"{number:06}_10.png")
            to_pil_image(second).save(folder / "image_2" / f"{number:06}_11.png")
            write_png16(encode_flow(flow.numpy(), valid.numpy()), folder / "flow_occ" / f"{number:06}_10.png")

    def scene(self, number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Both images, uint8 (3, H, W); the flow from first to second, (2, H, W) in pixels; its mask, bool (H, W)."""
        draw = torch.Generator().manual_seed(1000 * self.seed + number)
        pixels = torch.stack(
            torch.meshgrid(torch.arange(self.width), torch.arange(self.height), indexing="xy"), dim=-1
        ).float()
        size = torch.tensor([self.width, self.height])
        background, object_ = self._motion(size / 2, draw), self._motion(size * torch.rand(2, generator=draw), draw)
        textures = [_texture(draw) for _ in range(2)]
        radius = (0.15 + 0.2 * torch.rand((), generator=draw)) * self.height

        def shade(points_behind: Tensor, points_before: Tensor) -> tuple[Tensor, Tensor]:
            on_object = (points_before - object_.centre).norm(dim=-1) < radius
            behind, before = _look_up(textures[0], points_behind), _look_up(textures[1], points_before)
            return torch.where(on_object, before, behind), on_object

        first, on_object = shade(pixels, pixels)
        second, _ = shade(background.move_back(pixels), object_.move_back(pixels))
        flow = torch.where(on_object[..., None], object_.move(pixels), background.move(pixels)) - pixels
        valid = torch.rand(self.height, self.width, generator=draw) < self.valid_share
        return _bytes(first), _bytes(second), flow.permute(2, 0, 1).contiguous(), valid

    def _motion(self, centre: Tensor, draw: torch.Generator) -> Motion:
        angle, *shift = (2 * torch.rand(3, generator=draw) - 1).tolist()
        towards = torch.tensor(self.drift) + self.largest_shift * torch.tensor(shift)
        return Motion(angle * self.largest_angle, towards, centre.float())


def _texture(draw: torch.Generator) -> Tensor:
    """Noise of four scales on a 64 x 64 tile that is repeated for ever, values in [0, 1], (3, 64, 64)."""
    layers = []
    for cells in (4, 8, 16, 32):
        noise = torch.randn(1, 3, cells, cells, generator=draw)
        wrapped = F.pad(noise, (1, 1, 1, 1), mode="circular")
        smooth = F.interpolate(wrapped, scale_factor=64 // cells, mode="bicubic", align_corners=False)
        margin = 64 // cells
        layers.append(smooth[0, :, margin:-margin, margin:-margin] / cells**0.5)
    mixed = torch.stack(layers).sum(dim=0)
    return torch.sigmoid(2.5 * mixed / mixed.std())


def _look_up(texture: Tensor, points: Tensor) -> Tensor:
    """Colours (3, H, W) of an endlessly repeated texture at points (H, W, 2) in pixels, interpolated bilinearly."""
    size = texture.shape[-1]
    tiled = F.pad(texture[None], (0, 1, 0, 1), mode="circular")
    grid = 2 * points.remainder(size) / size - 1
    return F.grid_sample(tiled, grid[None], mode="bilinear", align_corners=True)[0]


def _bytes(image: Tensor) -> Tensor:
    return (255 * image).round().clamp(0, 255).to(torch.uint8)

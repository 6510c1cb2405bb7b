"""KITTI-2015's flow pairs through torchvision's reader, with a check of the files and help to get them."""

import struct
import warnings
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, from_numpy
from torch.utils.data import Dataset
from torchvision.datasets import KittiFlow
from torchvision.transforms.v2.functional import pil_to_tensor

PAIRS = 200
HELD_OUT_EVERY = 5

LAYOUT = """\
ROOT/KittiFlow/training/image_2/000000_10.png  first frame (.._10) and second (.._11) of 200 pairs, 000000 to 000199
ROOT/KittiFlow/training/flow_occ/000000_10.png their flow, PNG with 16 bits a channel"""
DOWNLOAD = """\
Register at https://www.cvlibs.net/datasets/kitti/eval_scene_flow.php?benchmark=flow, download data_scene_flow.zip
(about 2 GB) and unpack it into ROOT/KittiFlow. Licence: CC BY-NC-SA 3.0."""


class KittiError(Exception):
    """The files are not those of KITTI-2015; the message says which, what they should be, and where to get them."""


class FlowPair(NamedTuple):
    """Two images, uint8 (3, H, W); flow from the first to the second in pixels, (2, H, W); its mask, bool (H, W)."""

    first: Tensor
    second: Tensor
    flow: Tensor
    valid: Tensor


class KittiPairs(Dataset[FlowPair]):
    """The training pairs, the only ones with public ground truth."""

    def __init__(self, root: Path) -> None:
        """List the files below `root/KittiFlow`."""
        self._files = KittiFlow(root, split="train")

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self._files)

    def __getitem__(self, position: int) -> FlowPair:
        """Read one pair, of its own size."""
        with warnings.catch_warnings():
            # torchvision's own reader calls its decoder, which it has deprecated since 0.29
            warnings.filterwarnings("ignore", ".*TorchVision are deprecated", DeprecationWarning)
            first, second, flow, valid = self._files[position]
        return FlowPair(pil_to_tensor(first), pil_to_tensor(second), from_numpy(flow), from_numpy(valid))


def split(count: int, pairs: str) -> tuple[list[int], list[int]]:
    """Positions to train on and to measure on.

    "all" is both times all of them, as in MMFlow and so in Table X. "held_out" measures on every fifth pair.
    """
    every = list(range(count))
    if pairs == "all":
        return every, every
    held_out = every[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    return [position for position in every if position not in held_out], held_out


def check(root: Path, *, pairs: int = PAIRS) -> None:
    """Look at names and headers of all files.

    Raises:
        KittiError: a file is missing or is no 16-bit flow, or there are not `pairs` of them; says what to do.
    """
    folder = root / "KittiFlow" / "training"
    wanted = [folder / "flow_occ" / f"{number:06}_10.png" for number in range(pairs)]
    wanted += [folder / "image_2" / f"{number:06}_{frame}.png" for number in range(pairs) for frame in (10, 11)]
    if missing := [path for path in wanted if not path.is_file()]:
        raise KittiError(
            f"{len(missing)} of {len(wanted)} files are missing, first {missing[0]}\n\nWanted:\n{LAYOUT}\n\n{DOWNLOAD}"
        )
    extra = sorted(
        {path for kind in ("flow_occ", "image_2") for path in (folder / kind).glob("*_1[01].png")} - set(wanted)
    )
    if extra:
        raise KittiError(f"{len(extra)} files more than those of {pairs} pairs, first {extra[0]}\n\nWanted:\n{LAYOUT}")
    for path in wanted[:pairs]:
        if (found := _depth_and_colours(path)) != (16, 2):
            raise KittiError(f"{path}: a flow is an RGB PNG (colour type 2) with 16 bits a channel, this has {found}")


def _depth_and_colours(path: Path) -> tuple[int, int]:
    """Bits a channel and colour type from a PNG's header; (0, 0) if it is none."""
    with path.open("rb") as file:
        header = file.read(26)
    if len(header) < 26 or not header.startswith(b"\x89PNG\r\n\x1a\n"):
        return 0, 0
    return struct.unpack(">BB", header[24:26])

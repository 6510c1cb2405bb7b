"""KITTI's flow files: PNG with 16 bits per channel, `64 * flow + 2^15` in red and green, the valid mask in blue."""

import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

OFFSET = 1 << 15
SCALE = 64
LARGEST = (OFFSET - 1) / SCALE
"""Flow in pixels that the format can hold; its resolution is 1/64."""


def encode_flow(flow: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """Turn flow (2, H, W) in pixels and its mask (H, W) into the file's values (H, W, 3).

    Raises:
        ValueError: a valid flow is longer than the format can hold.
    """
    if (worst := np.abs(flow[:, valid]).max(initial=0.0)) > LARGEST:
        raise ValueError(f"flow of {worst:g} pixels: KITTI's format holds at most {LARGEST:g}")
    values = np.zeros((*valid.shape, 3), np.uint16)  # (0, 0, 0) marks a pixel without ground truth
    values[valid, :2] = (np.rint(flow[:, valid].T * SCALE) + OFFSET).astype(np.uint16)
    values[..., 2] = valid
    return values


def write_png16(values: NDArray[np.uint16], path: Path) -> None:
    """Write (H, W, 3) as an RGB PNG with 16 bits a channel, which neither torchvision nor Pillow can."""
    height, width, _ = values.shape
    rows = values.astype(">u2").reshape(height, -1).view(np.uint8)
    unfiltered = np.hstack([np.zeros((height, 1), np.uint8), rows])  # each row begins with its filter's number
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(unfiltered.tobytes())), (b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, body) for kind, body in parts))


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

"""The layouts in which others store sparse changes, each written out; `LAYOUTS` names them all.

A layout writes one file for all changed tensors, in safetensors unless it says otherwise.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks import external_tools
from benchmarks.checkpoint_pair import CheckpointPair
from rst.numerics.exactness import bits

ESCAPE = (1 << 16) - 1  # a gap of at least this many weights: skip them, no entry


def paper_to_sparse(pair: CheckpointPair, path: Path) -> None:
    """The paper's own: `torch.save` of `(wt - w0).to_sparse()`, one int64 for each dimension of each entry."""
    torch.save({name: (pair.tuned[name] - pair.base[name]).to_sparse() for name in pair.positions}, path)


def shira_pairs(pair: CheckpointPair, path: Path) -> None:
    """SHiRA in PEFT (`ShiraLayer.shira_indices`): int32 row and column, and the value. Vectors count as one row."""
    arrays = _values(pair, pair.tuned)
    for name, where in pair.positions.items():
        shape = pair.base[name].shape
        columns = pair.base[name].numel() // (shape[0] if len(shape) > 1 else 1)
        arrays[f"{name}.indices"] = torch.stack([where // columns, where % columns]).int()
    save_file(arrays, path)


def int32_absolute(pair: CheckpointPair, path: Path) -> None:
    """Weight sync of TRL (huggingface/trl#5417) and vLLM (vllm-project/vllm#40096): int32 flat index, new value."""
    indices = {f"{name}.indices": where.int() for name, where in pair.positions.items()}
    save_file(indices | _values(pair, pair.tuned), path)


def uint16_gaps(pair: CheckpointPair, path: Path) -> None:
    """Index differences in 16 bits, as NeMo RL (NVIDIA-NeMo/RL#2444), with an escape for wide ones; new value."""
    gaps = {f"{name}.gaps": encode_gaps(where) for name, where in pair.positions.items()}
    save_file(gaps | _values(pair, pair.tuned), path)


def gaps_zstd(pair: CheckpointPair, path: Path) -> None:
    """The same file through zstd, as slime's `deltas_zstd` and PULSE (arXiv 2602.03839)."""
    plain = path.with_suffix(".plain")
    uint16_gaps(pair, plain)
    external_tools.zstd(plain, path, level=3)
    plain.unlink()


def xor_zstd(pair: CheckpointPair, path: Path) -> None:
    """XOR of the two checkpoints' bytes through zstd, as proposed for SkyRL (NovaSky-AI/SkyRL#1903). No header."""
    plain = path.with_suffix(".plain")
    write_xor(pair, plain)
    external_tools.zstd(plain, path, level=3)
    plain.unlink()


LAYOUTS: Mapping[str, Callable[[CheckpointPair, Path], None]] = {
    "paper: torch.save of to_sparse": paper_to_sparse,
    "SHiRA: int32 pairs": shira_pairs,
    "int32 + absolute": int32_absolute,
    "uint16 gaps + absolute": uint16_gaps,
    "uint16 gaps, zstd -3": gaps_zstd,
    "XOR, zstd -3": xor_zstd,
}


def encode_gaps(positions: Tensor) -> Tensor:
    """Unchanged weights before each entry as uint16, after `ESCAPE` for every 65,535 that do not fit."""
    gaps = torch.diff(positions, prepend=torch.tensor([-1])) - 1
    escapes = gaps // ESCAPE
    encoded = torch.full((gaps.numel() + int(escapes.sum()),), ESCAPE)
    encoded[(escapes + 1).cumsum(0) - 1] = gaps % ESCAPE
    return encoded.to(torch.uint16)


def write_xor(pair: CheckpointPair, path: Path) -> None:
    """Write the XOR of every tensor, end to end."""
    with path.open("wb") as file:
        for name, tuned in pair.tuned.items():
            file.write((bits(tuned) ^ bits(pair.base[name])).numpy().data)


def _values(pair: CheckpointPair, side: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{name}.values": values for name, values in pair.at_changes(side).items()}

"""The layout of a sharded model: which process has which block of each tensor, and which of them owns it."""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rst.errors import ConfigError, ParameterMismatchError
from rst.numerics.exactness import as_bytes, bits
from rst.shards.blocks import Block, block_of, is_sharded
from rst.shards.collectives import add_up, gather_bytes, is_first, tell_all, together

Blocks = dict[str, Block]

_FLAT = "FullyShardedDataParallel"


def find_layout(model: nn.Module, live: Mapping[str, Tensor]) -> "ShardLayout | None":
    """Return the layout of a model's tensors; None, without communication, if none is a DTensor.

    Raises:
        ConfigError: the model is sharded by the first FSDP, whose pieces have no position in their parameter.
        ParameterMismatchError: a tensor has an unsupported placement, or is not complete.
    """
    if any(kind.__name__ == _FLAT for module in model.modules() for kind in type(module).__mro__):
        raise ConfigError(f"{_FLAT} flattens parameters; shard with torch.distributed.fsdp.fully_shard instead")
    return ShardLayout(live) if any(is_sharded(tensor) for tensor in live.values()) else None


class ShardLayout:
    """The blocks of one model's tensors over all processes of the default group; each process must have a part.

    A block that several processes have (replicated parameters, hybrid sharding, data parallelism around tensor
    parallelism) is owned by the one of lowest rank, so that every weight counts once.
    """

    def __init__(self, live: Mapping[str, Tensor]) -> None:
        """Exchange the places of the blocks of all parameters and buffers, by name. Collective.

        Raises:
            ParameterMismatchError: processes have different tensors, or the blocks of one are not a grid that covers
                it.
        """
        placed = {name: getattr(tensor, "placements", "no DTensor") for name, tensor in live.items()}
        meshes = [tensor.device_mesh for tensor in live.values() if is_sharded(tensor)]  # type: ignore[attr-defined]
        self.device = _device(meshes[0].device_type)
        self.blocks: Blocks = together(lambda: {name: block_of(name, live[name]) for name in live}, self.device)
        everywhere: Sequence[Blocks] = tell_all(self.blocks)
        for rank, blocks in enumerate(everywhere):
            _check_same_tensors(self.blocks, blocks, rank)
        owners: dict[str, dict[Block, int]] = {name: {} for name in self.blocks}
        for rank, blocks in enumerate(everywhere):
            for name, block in blocks.items():
                if block.numel:
                    owners[name].setdefault(block, rank)
        for name, owned in owners.items():
            _check_complete(name, self.blocks[name].shape, list(owned), placed[name])
        mine = dist.get_rank()
        self._owned = {name for name, block in self.blocks.items() if owners[name].get(block) == mine}
        self._owners = owners if is_first() else {}

    def owns(self, name: str) -> bool:
        """Return whether this process owns its block of a tensor."""
        return name in self._owned

    def numel(self, name: str) -> int:
        """Return the number of elements of the whole tensor."""
        return math.prod(self.blocks[name].shape)

    def add_up(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Sum, by name, the counts of each process' owned blocks over all processes. Collective."""
        mine = [count if self.owns(name) else 0 for name, count in counts.items()]
        return dict(zip(counts, add_up(torch.tensor(mine), self.device).tolist(), strict=True))

    def assemble(self, name: str, part: Tensor) -> Tensor | None:
        """Assemble a tensor in the first process, on its CPU; None elsewhere. Collective.

        Args:
            name: the tensor's.
            part: this process' block.
        """
        owned = self.owns(name)
        received = gather_bytes(as_bytes(part if owned else part.new_empty(0)), self.device)
        if received is None:
            return None
        whole = torch.empty(self.blocks[name].shape, dtype=part.dtype)
        for block, owner in self._owners[name].items():
            whole[block.slices] = received[owner].view(part.dtype).reshape(block.size)
        return whole

    def gather_at(self, name: str, positions: Tensor, values: Tensor) -> Tensor | None:
        """Assemble a tensor's values at sorted flat positions in the first process; None elsewhere. Collective.

        Args:
            name: the tensor's.
            positions: in the whole tensor, int64 of shape (n,), the same in every process.
            values: those in this process' block, in order.
        """
        received = gather_bytes(as_bytes(values if self.owns(name) else values[:0]), self.device)
        if received is None:
            return None
        whole = torch.empty(positions.numel(), dtype=values.dtype)
        for block, owner in self._owners[name].items():
            bits(whole)[block.cut(positions)[0]] = bits(received[owner].view(values.dtype))
        return whole


def _device(kind: str) -> torch.device:
    """Return the device for collectives: that of the mesh, wherever the weights are offloaded to."""
    if kind == "cpu":
        return torch.device("cpu")
    return torch.device(kind, torch.get_device_module(kind).current_device())  # pragma: no cover  (CUDA)


def _check_same_tensors(here: Blocks, there: Blocks, rank: int) -> None:
    if different := sorted(here.keys() ^ there.keys()):
        raise ParameterMismatchError(
            f"not in every process (rank {dist.get_rank()} and rank {rank} differ in {len(different)} "
            "tensors); pipelines are not supported",
            parameter=different[0],
        )
    for name, block in here.items():
        if block.shape != there[name].shape:
            raise ParameterMismatchError(f"{block.shape}, but {there[name].shape} on rank {rank}", parameter=name)


def _check_complete(name: str, shape: tuple[int, ...], blocks: Sequence[Block], placements: object) -> None:
    """Raise `ParameterMismatchError` unless the blocks are a grid that covers the tensor without overlaps."""
    if not math.prod(shape):
        return
    cells = 1
    for axis, length in enumerate(shape):
        spans = sorted({(block.offset[axis], block.size[axis]) for block in blocks})
        ends = [0, *(start + size for start, size in spans)]
        if [start for start, _ in spans] != ends[:-1] or ends[-1] != length:
            raise ParameterMismatchError(
                f"placed as {placements}, its {length} elements along axis {axis} are cut to {spans} "
                "(start, length); only blocks in a grid are supported",
                parameter=name,
            )
        cells *= len(spans)
    if cells != len(blocks):
        raise ParameterMismatchError(
            f"placed as {placements}, {len(blocks)} of {cells} blocks are there", parameter=name
        )

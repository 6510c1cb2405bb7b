"""The kept weights of a model that FSDP2 shards: each process trains those in its own blocks."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rst.delta.parameter_delta import index_dtype
from rst.errors import ConfigError
from rst.shards.blocks import Block
from rst.shards.collectives import tell_all
from rst.shards.layout import ShardLayout

Entries = dict[str, Tensor]
"""Tensors of shape (n,), with one element per kept weight; "positions", int32 or int64, is among them."""

_SHARDS = "FSDPModule"


def check_sharded_by_fsdp(model: nn.Module) -> None:
    """Raise `ConfigError` for a model whose gradients FSDP2 does not reduce, such as tensor parallelism alone."""
    if not any(kind.__name__ == _SHARDS for module in model.modules() for kind in type(module).__mro__):
        raise ConfigError(
            'select="support" of a model that parallelize_module cut is not supported; shard it with fully_shard, or '
            'use a threshold, or "top"'
        )


def cut(entries: Entries, block: Block) -> Entries:
    """Return the entries, sorted by position in the whole parameter, that lie in a block, by position in the block."""
    chosen, positions = block.cut(entries["positions"].long().cpu())
    own = {key: tensor[chosen.to(tensor.device)] for key, tensor in entries.items()}
    return own | {"positions": positions.to(index_dtype(block.numel))}


def assemble(entries: Mapping[str, Entries], layout: ShardLayout) -> dict[str, Entries]:
    """Return the entries of all processes, by position in the whole parameter: in every process, on CPU. Collective."""
    mine: dict[str, Entries] = {}
    for name, own in entries.items():
        count = own["positions"].numel() if layout.owns(name) else 0
        positions = layout.blocks[name].to_global(own["positions"].long().cpu())
        kind = index_dtype(layout.numel(name))
        mine[name] = {key: tensor.cpu()[:count] for key, tensor in (own | {"positions": positions.to(kind)}).items()}
    everywhere = tell_all(mine)
    found = {}
    for name, own in mine.items():
        parts = [one[name] for one in everywhere]
        order = torch.cat([part["positions"] for part in parts]).argsort()
        found[name] = {key: torch.cat([part[key] for part in parts])[order] for key in own}
    return found

"""Positions of a block in the whole, and what is refused before a process group is asked."""

import math

import pytest
import torch
from torch import nn

from rst import ConfigError, ResidualSparseTrainer, RSTConfig
from rst.shards.blocks import Block


@pytest.mark.parametrize(
    ("shape", "offset", "size"),
    [
        ((5,), (2,), (3,)),
        ((), (), ()),
        ((4, 3), (1, 0), (2, 3)),
        ((4, 3), (0, 1), (4, 2)),
        ((4, 3), (4, 0), (0, 3)),
        ((3, 4, 5), (1, 2, 0), (2, 2, 5)),
        ((3, 4, 5), (0, 1, 3), (3, 1, 2)),
    ],
)
def test_positions_of_a_block_are_those_of_its_elements_in_the_whole(
    shape: tuple[int, ...], offset: tuple[int, ...], size: tuple[int, ...]
) -> None:
    block = Block(shape, offset, size)
    whole = torch.arange(math.prod(shape)).reshape(shape)
    assert torch.equal(block.to_global(torch.arange(block.numel)), whole[block.slices].reshape(-1))
    for positions in (torch.arange(whole.numel()), torch.arange(1, whole.numel(), 3), torch.arange(0)):
        chosen, here = block.cut(positions)
        assert torch.equal(block.to_global(here), positions[chosen])
        left_out = set(positions.tolist()) - set(positions[chosen].tolist())
        assert not left_out & set(whole[block.slices].reshape(-1).tolist())


def test_the_first_fsdp_is_refused_before_anything_is_frozen() -> None:
    class FullyShardedDataParallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 2)

    model = nn.Sequential(FullyShardedDataParallel(), nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="fully_shard"):
        ResidualSparseTrainer(model, RSTConfig(target_modules=["inner"]))
    assert all(weight.requires_grad for weight in model.parameters())

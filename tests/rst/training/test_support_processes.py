"""A support trained by two processes, against one process with both their batches."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from rst import ConfigError, ResidualSparseTrainer, RSTConfig, Support
from tests.rst.distributed.process_group import run
from tests.rst.training.test_support_linear import Two, squares

CONFIG = RSTConfig(select="support", modules_to_save=["head"])


class WithHead(Two):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(300, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(super().forward(x))
        return logits


def trained(rank: int, world: int, moves: bool = False) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = WithHead()
    trainer = ResidualSparseTrainer(model, CONFIG, support=Support.random(model, 0.01, config=CONFIG))
    wrapped: Any = nn.parallel.DistributedDataParallel(model) if world > 1 else model
    optimizer = torch.optim.SGD(trainer.parameters(), lr=0.5, momentum=0.9)
    trainer.attach(optimizer)
    for step in range(4):
        rows = torch.randn(4, 300, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        for micro in rows[rank::world].split(1):
            (squares(wrapped, micro) * world / 4).backward()
        optimizer.step()
        if moves:
            optimizer.zero_grad()
            own = torch.randn(4, 300, generator=torch.Generator().manual_seed(100 * rank + step))
            trainer.move_support([own], 0.5, loss=lambda batch: squares(model, batch))
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def of_one_rank_that_moves() -> dict[str, Tensor]:
    return trained(dist.get_rank(), dist.get_world_size(), moves=True)


def of_one_rank() -> tuple[dict[str, Tensor], str]:
    weights = trained(dist.get_rank(), dist.get_world_size())
    model = nn.parallel.DistributedDataParallel(WithHead())
    with pytest.raises(ConfigError) as caught:
        ResidualSparseTrainer(model, CONFIG, support=Support.random(model, 0.01, config=CONFIG))
    return weights, str(caught.value)


def test_two_processes_train_as_one() -> None:
    (first, refusal), (second, _) = run(2, of_one_rank)
    assert "DistributedDataParallel" in refusal
    alone = trained(0, 1)
    for name, weight in first.items():
        assert torch.equal(weight, second[name])
        torch.testing.assert_close(weight, alone[name], rtol=1e-4, atol=1e-6)
    untouched = WithHead()
    assert not torch.equal(first["second.weight"], untouched.second.weight)


def test_the_first_processes_batches_decide_where_a_support_moves() -> None:
    first, second = run(2, of_one_rank_that_moves)
    alone = trained(0, 1, moves=True)
    for name, weight in first.items():
        assert torch.equal(weight, second[name])
        torch.testing.assert_close(weight, alone[name], rtol=1e-4, atol=1e-6)

"""A support trained by two processes, against one process with both their batches."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from rst import ConfigError, ResidualSparseTrainer, RSTConfig, Support, merge
from rst.distributed import export_sharded
from rst.numerics.exactness import bit_equal
from tests.rst.distributed.process_group import run
from tests.rst.distributed.sharded_models import Net, fsdp, tensor_parallel, whole
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


SHARDED = RSTConfig(select="support", modules_to_save=["head"])


def rows_of(step: int, rank: int, world: int, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Micro-batches: of one process, both of two processes'."""
    generator = torch.Generator().manual_seed(step)
    inputs, labels = torch.randn(8, 6, generator=generator), torch.randint(3, (8,), generator=generator)
    inputs = inputs.to(dtype)
    return list(zip(inputs[rank::world].split(2), labels[rank::world].split(2), strict=True))


def train_net(
    model: Net, rank: int, world: int, steps: range, resumed: dict[str, Any] | None = None
) -> tuple[ResidualSparseTrainer, torch.optim.Optimizer]:
    """A support of a model that may be sharded, and that is none of every block's."""
    support = Support.random(model, 0.1, config=SHARDED)
    trainer = ResidualSparseTrainer(model, SHARDED, support=support)
    optimizer = torch.optim.AdamW(trainer.parameters(), lr=0.01)
    if resumed is not None:
        model.load_state_dict(resumed["model"])
        trainer.load_state_dict(resumed["trainer"])
        optimizer.load_state_dict(resumed["optimizer"])
    trainer.attach(optimizer)
    for step in steps:
        optimizer.zero_grad()
        for inputs, labels in (parts := rows_of(step, rank, world, model.scale.dtype)):
            (nn.functional.cross_entropy(model(inputs), labels) / len(parts)).backward()
            assert all(weight.grad is None for name, weight in model.named_parameters() if name in support)
        optimizer.step()
    return trainer, optimizer


def of_one_shard(dtype: torch.dtype) -> dict[str, Any]:
    rank, world = dist.get_rank(), dist.get_world_size()
    model, again, last = Net(), Net(), Net()
    for one in (model, again, last):
        one.to(dtype)
        fsdp(one)
    trainer, _ = train_net(model, rank, world, range(4))
    half, optimizer = train_net(again, rank, world, range(2))
    state = {"model": again.state_dict(), "trainer": half.state_dict(), "optimizer": optimizer.state_dict()}
    resumed, _ = train_net(last, rank, world, range(2, 4), state)
    refused = []
    for method in (trainer.to_support, lambda: trainer.move_support([])):
        with pytest.raises(ConfigError) as caught:
            method()
        refused.append(str(caught.value))
    return {
        "delta": export_sharded(trainer),
        "resumed": export_sharded(resumed),
        "weights": whole(model),
        "trained": sum(values.numel() for name, values in trainer.named_parameters() if not name.startswith("head")),
        "support": trainer.state_dict()["support"],
        "refused": refused,
    }


@pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"), reason="fully_shard of this torch runs on GPUs alone"
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_process_trains_its_own_part_of_a_sharded_model(dtype: torch.dtype) -> None:
    first, second = run(2, of_one_shard, dtype)
    alone = Net().to(dtype)
    base = {name: tensor.clone() for name, tensor in alone.state_dict().items()}
    trainer, _ = train_net(alone, 0, 1, range(4))
    delta, wanted = first["delta"], trainer.export()
    assert second["delta"] is None
    assert {name: change.indices.tolist() for name, change in delta.items()} == {
        name: change.indices.tolist() for name, change in wanted.items()
    }
    assert (delta.nnz, delta.base) == (wanted.nnz, wanted.base)
    merged = merge(base, delta)
    for name, weight in first["weights"].items():
        if name != "seen":
            assert bit_equal(merged[name], weight)
            assert bit_equal(second["weights"][name], weight)
            torch.testing.assert_close(weight, alone.state_dict()[name], rtol=0.02, atol=2e-3)
    support = trainer.state_dict()["support"]
    assert first["trained"] + second["trained"] == sum(one["values"].numel() for one in support.values())
    assert 0 < first["trained"] < first["trained"] + second["trained"]
    for name, one in first["support"].items():
        assert torch.equal(one["positions"], support[name]["positions"])
        assert bit_equal(one["origin"], support[name]["origin"])
    assert first["resumed"] == delta
    assert all("sharded" in said for said in first["refused"])


def of_one_tensor_parallel_rank() -> str:
    model = Net()
    tensor_parallel(model)
    with pytest.raises(ConfigError) as caught:
        ResidualSparseTrainer(model, SHARDED, support=Support.random(Net(), 0.1, config=SHARDED))
    return str(caught.value)


def test_tensor_parallelism_alone_is_refused() -> None:
    assert all("parallelize_module" in said for said in run(2, of_one_tensor_parallel_rank))

"""A support under Lightning's DDP, whose processes form their group after the trainer is made, against one process."""

import os
import re
import socket
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from rst import ConfigError, ResidualSparseTrainer, RSTConfig, SparseDelta, Support
from tests.messages import names
from tests.rst.distributed.process_group import run
from tests.rst.training.test_support_processes import CONFIG, WithHead, squares

pl = pytest.importorskip("lightning.pytorch")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:::lightning")]

STEPS, ROWS = 4, 4


class Inside(pl.LightningModule):  # type: ignore[misc, name-defined]
    """Its names for the network's weights are not the network's."""

    def __init__(self, config: RSTConfig) -> None:
        super().__init__()
        from rst.interop.lightning import RSTCallback

        torch.manual_seed(0)
        self.network = WithHead()
        support = Support.random(self.network, 0.01, config=CONFIG)
        self.callback = RSTCallback(ResidualSparseTrainer(self.network, config, support=support))

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return squares(self.network, batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.callback.trainer.parameters(), lr=0.5, momentum=0.9)


def fit(module: Inside, rank: int, world: int) -> SparseDelta:
    rows = torch.randn(STEPS, ROWS, 300, generator=torch.Generator().manual_seed(1))
    own = rows[:, rank::world].reshape(-1, 300)
    pl.Trainer(
        accelerator="cpu",
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        max_epochs=1,
        callbacks=[module.callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    ).fit(module, DataLoader(TensorDataset(own), batch_size=ROWS // world))
    delta: SparseDelta = module.callback.export()
    return delta


def of_one_rank(port: int, config: RSTConfig) -> tuple[SparseDelta, dict[str, Any]]:
    rank, world = dist.get_rank(), dist.get_world_size()
    dist.destroy_process_group()
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
        "GROUP_RANK": "0",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
    }
    module = Inside(config)
    delta = fit(module, rank, world)
    if not dist.is_initialized():
        dist.init_process_group("gloo", rank=rank, world_size=world)
    return delta, {name: weight.detach().clone() for name, weight in module.network.named_parameters()}


def test_a_support_and_nothing_else_is_told_what_ddp_wants() -> None:
    module = Inside(RSTConfig(select="support", exclude_modules=["head"]))
    trainer = pl.Trainer(accelerator="cpu", devices=1, strategy="ddp", logger=False, enable_checkpointing=False)
    with pytest.raises(ConfigError) as caught:
        module.callback.setup(trainer, module, "fit")
    assert re.search(names("DDPStrategy", "modules_to_save"), str(caught.value))


def test_two_processes_train_as_one() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (first, weights), (second, others) = run(2, of_one_rank, port, CONFIG)
    alone = Inside(CONFIG)
    wanted = fit(alone, 0, 1)
    assert first == second
    assert {name: change.indices.tolist() for name, change in first.items()} == {
        name: change.indices.tolist() for name, change in wanted.items()
    }
    for name, weight in alone.network.named_parameters():
        assert torch.equal(weights[name], others[name])
        torch.testing.assert_close(weights[name], weight.detach(), rtol=1e-4, atol=1e-6)
    assert isinstance(alone.network.second, nn.Linear)
    assert not alone.network.second.weight.requires_grad  # its gradients were sampled

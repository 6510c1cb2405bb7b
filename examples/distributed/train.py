"""Train one model in several processes, keep its change sparse, and ship the change without gathering the model.

    torchrun --nproc-per-node 2 -m examples.distributed.train --parallelism fsdp
    torchrun --nproc-per-node 2 -m examples.distributed.train --parallelism ddp

A small network is trained on scikit-learn's handwritten digits. Each process uses its share of every batch, on GPUs if
there is one per process, otherwise on the CPU. The process of rank 0 writes `base.safetensors` and `delta.safetensors`,
merges them, and compares the result with the sharded model's own checkpoint, bit for bit.
"""

import os
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated

import torch
import torch.distributed as dist
import typer
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard

from rst import ResidualSparseTrainer, RSTConfig, SparseDelta, merge
from rst.distributed import export_sharded

Batch = tuple[Tensor, Tensor]


class Parallelism(str, Enum):
    """How the processes share the work."""

    DDP = "ddp"
    FSDP = "fsdp"


def build() -> nn.Sequential:
    """The model with its w0, the same in every process."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


def parallelize(model: nn.Sequential, parallelism: Parallelism) -> nn.Module:
    """Wrap the model for data parallelism, or shard it in place, a layer at a time."""
    if parallelism is Parallelism.DDP:
        return nn.parallel.DistributedDataParallel(model)
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    fully_shard(model)
    return model


def shares(batch_size: int, steps: int, rank: int, processes: int, device: torch.device) -> Iterator[Batch]:
    """This process' share of each batch: images of shape (batch_size / processes, 64) and their labels."""
    digits = load_digits()
    images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    generator = torch.Generator().manual_seed(0)  # the same batches everywhere
    for _ in range(steps):
        chosen = torch.randint(len(images), (batch_size,), generator=generator)
        mine = chosen[rank::processes]
        yield images[mine].to(device), labels[mine].to(device)


def train(
    parallelism: Parallelism, config: RSTConfig, batches: Iterator[Batch], device: torch.device
) -> tuple[SparseDelta | None, dict[str, Tensor]]:
    """Train as always; returns in rank 0 the delta, and the whole tuned weights to hold it against."""
    model = parallelize(build().to(device), parallelism)
    trainer = ResidualSparseTrainer(model, config)  # after sharding: w0 is sharded as well
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trainer.attach(optimizer)
    for images, labels in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    delta = trainer.export() if parallelism is Parallelism.DDP else export_sharded(trainer)
    return delta, get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def ship(delta: SparseDelta, tuned: dict[str, Tensor], output: Path) -> None:
    """Write base and delta, merge them, and compare. Raises `RuntimeError` if a bit differs."""
    output.mkdir(parents=True, exist_ok=True)
    base, changes, merged = (output / f"{name}.safetensors" for name in ("base", "delta", "merged"))
    save_file(build().state_dict(), base)
    delta.save(changes, encoding="packed")
    merge(base, changes, merged)
    found = load_file(merged)
    if different := [name for name, weight in tuned.items() if _raw(found[name]) != _raw(weight)]:
        raise RuntimeError(f"{len(different)} merged tensors differ from the trained ones, first {different[0]}")
    print(delta.summary())
    print(
        f"{base.stat().st_size:,} + {changes.stat().st_size:,} bytes give all {len(tuned)} tuned tensors, bit for bit"
    )


def _raw(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()


def main(
    parallelism: Annotated[Parallelism, typer.Option(help="Whole models, or one in shards.")] = Parallelism.FSDP,
    threshold: Annotated[float, typer.Option(help="tau of Eq. 17.")] = 5e-3,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 100,
    output: Annotated[Path, typer.Option(help="Folder for the three files.")] = Path("outputs/distributed"),
) -> None:
    """Train in several processes and ship the sparse change; start it with torchrun."""
    local_rank, processes = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    on_gpus = torch.cuda.device_count() >= processes
    device = torch.device("cuda", local_rank) if on_gpus else torch.device("cpu")
    if on_gpus:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpus else "gloo")
    batches = shares(64, steps, dist.get_rank(), dist.get_world_size(), device)
    delta, tuned = train(parallelism, RSTConfig(threshold=threshold), batches, device)
    if delta is not None and dist.get_rank() == 0:
        ship(delta, tuned, output)
    dist.destroy_process_group()


if __name__ == "__main__":
    typer.run(main)

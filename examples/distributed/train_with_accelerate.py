"""The same training with accelerate, whose own settings determine how the processes share the work.

    ACCELERATE_USE_CPU=true \\
        accelerate launch --multi_gpu --num_processes 2 -m examples.distributed.train_with_accelerate
    accelerate launch --use_fsdp --fsdp_version 2 --num_processes 2 -m examples.distributed.train_with_accelerate

The first command gives each of two processes the whole model (DDP), on the CPU: `--cpu` would start one process only.
The second gives each of two a shard (FSDP2), which accelerate has on GPUs only.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from accelerate import Accelerator
from torch import nn

from examples.distributed.train import build, shares, ship
from rst import ResidualSparseTrainer, RSTConfig
from rst.distributed import export_sharded


def main(
    threshold: Annotated[float, typer.Option(help="tau of Eq. 17.")] = 5e-3,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 100,
    output: Annotated[Path, typer.Option(help="Folder for the three files.")] = Path("outputs/distributed"),
) -> None:
    """Train in several processes and ship the sparse change; start it with accelerate launch."""
    accelerator = Accelerator()
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model, optimizer = accelerator.prepare(model, optimizer)
    trainer = ResidualSparseTrainer(model, RSTConfig(threshold=threshold))  # after prepare, which may shard w0
    trainer.attach(optimizer)
    for images, labels in shares(64, steps, accelerator.process_index, accelerator.num_processes, accelerator.device):
        optimizer.zero_grad()
        accelerator.backward(nn.functional.cross_entropy(model(images), labels))
        optimizer.step()
    delta = trainer.export() if trainer.layout is None else export_sharded(trainer)
    tuned = accelerator.get_state_dict(model)
    if delta is not None and accelerator.is_main_process:
        print(f"{accelerator.num_processes} processes, each with {'a shard' if trainer.layout else 'the whole model'}")
        ship(delta, {name: weight.cpu() for name, weight in tuned.items()}, output)
    accelerator.end_training()


if __name__ == "__main__":
    typer.run(main)

"""What the test of a sharded model's `PublishCallback` runs in every process."""

from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn

STEPS, EVERY = 3, 2


def configure(sharding: str | None) -> None:
    """Have accelerate's state as `accelerate launch` leaves it with a plugin, which it does on GPUs alone."""
    import accelerate

    state: Any = accelerate.Accelerator(cpu=True).state
    if sharding == "DeepSpeed":
        state.deepspeed_plugins = object()
    elif sharding:
        state.fsdp_plugin = accelerate.FullyShardedDataParallelPlugin(fsdp_version={"FSDP": 1, "FSDP2": 2}[sharding])


def publish(model: nn.Module, folder: Path, sharding: str | None, first: bool) -> list[tuple[int, str]]:
    """Call the callback as a `Trainer` does; returns what the first process is told."""
    import torch
    import transformers

    from rst.interop.publish_callback import PublishCallback
    from tests.rst.sync.sharded_publishing import move

    told: list[tuple[int, str]] = []
    args = transformers.TrainingArguments(str(folder / "out"), use_cpu=True, report_to=[])
    configure(sharding)
    state, control = transformers.TrainerState(is_world_process_zero=first), transformers.TrainerControl()
    callback = PublishCallback(
        folder / "chain",
        every=EVERY,
        dtype=torch.bfloat16,
        on_publish=lambda done: told.append((done.step, done.state)),
    )
    callback.on_train_begin(args, state, control, model=model)
    for step in range(1, STEPS + 1):
        move(model, step)
        state.global_step = step
        callback.on_step_end(args, state, control, model=model)
    callback.on_train_end(args, state, control, model=model)
    return told


def publish_sharded(folder: Path) -> list[tuple[int, str]]:
    """Two processes, a model of FSDP2."""
    from tests.rst.distributed import sharded_models

    model = sharded_models.Net()
    sharded_models.fsdp(model)
    return publish(model, folder, "FSDP2", dist.get_rank() == 0)

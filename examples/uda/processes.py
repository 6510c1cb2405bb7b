"""Synchronisation between processes: gradients after each backward pass, BatchNorm's statistics before a test."""

import torch
from accelerate import Accelerator
from torch import nn


def average_gradients(optimizer: torch.optim.Optimizer, accelerator: Accelerator) -> None:
    """Replace every gradient by its mean over the processes; alone, do nothing.

    By hand, because an objective calls the student's parts one by one, which DistributedDataParallel does not see.
    """
    if accelerator.num_processes == 1:
        return
    weights = [weight for group in optimizer.param_groups for weight in group["params"] if weight.grad is not None]
    flat = accelerator.reduce(torch.cat([weight.grad.flatten() for weight in weights]), "mean")
    for weight, mean in zip(weights, flat.split([weight.numel() for weight in weights]), strict=True):
        weight.grad.copy_(mean.view_as(weight))


@torch.no_grad()
def average_statistics(model: nn.Module, accelerator: Accelerator) -> None:
    """Replace every floating-point buffer by its mean over the processes; alone, do nothing."""
    if accelerator.num_processes == 1:
        return
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.copy_(accelerator.reduce(buffer, "mean"))

"""A check whether the optimiser's steps exceed the rounding of the weights they are added to."""

import warnings

import torch
from torch import nn


def share_of_lost_steps(optimizer: torch.optim.Optimizer, module: nn.Module) -> float:
    """Share of the module's weights that sit in a tensor whose typical step rounds away (formulas, note 5).

    A step `lr * momentum` counts as lost under half the spacing of the dtype at the weight; both are taken at their
    root mean square over the tensor. 0 where SGD has not stepped yet.
    """
    inside = {id(weight) for weight in module.parameters()}
    lost = seen = 0
    for group in optimizer.param_groups:
        for weight in group["params"]:
            velocity = optimizer.state.get(weight, {}).get("momentum_buffer")
            if id(weight) in inside and velocity is not None:
                step = group["lr"] * velocity.double().square().mean().sqrt()
                spacing = torch.finfo(weight.dtype).eps * weight.detach().double().square().mean().sqrt()
                lost += weight.numel() * bool(step < spacing / 2)
                seen += weight.numel()
    return lost / seen if seen else 0.0


def warn_of_lost_steps(optimizer: torch.optim.Optimizer, module: nn.Module) -> None:
    """Warn if most of the module's weights do not feel their typical step."""
    share = share_of_lost_steps(optimizer, module)
    if share > 0.5:
        rate = optimizer.param_groups[0]["lr"]
        warnings.warn(
            f"a typical step at the encoder's learning rate {rate:g} is below the resolution of {share:.0%} of its "
            "weights: they will hardly train; raise encoder_lr",
            stacklevel=2,
        )

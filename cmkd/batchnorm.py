"""Freezing BatchNorm in the image encoder (Sec. IV.A): small batches of two domains must not change its statistics."""

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def freeze_batchnorm(encoder: nn.Module, *, affine: bool) -> None:
    """Keep every BatchNorm layer of an encoder in eval mode, even after a call of `train()`.

    The layers are put in eval mode again before each forward pass of `encoder`, as in the released code, which freezes
    only the statistics (`affine=False`); the paper freezes the whole layers. `Preset.batchnorm_affine_frozen` holds the
    choice.

    Args:
        encoder: changed in place; copies of it (`copy.deepcopy`) are frozen as well.
        affine: also stop training the layers' weights and biases. A later `encoder.requires_grad_()` undoes this.
    """
    for module in encoder.modules():
        if affine and isinstance(module, _BatchNorm):
            module.requires_grad_(False)
    _hold_statistics(encoder, None)
    encoder.register_forward_pre_hook(_hold_statistics)


def _hold_statistics(encoder: nn.Module, _: Any) -> None:
    for module in encoder.modules():
        if isinstance(module, _BatchNorm):
            module.eval()

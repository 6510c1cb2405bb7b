"""Evaluation in the middle of training, after which every module returns to its previous mode."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Switch a module to eval mode, and restore the mode of each of its submodules on exit.

    Calling `module.train()` would not be enough: it would also unfreeze the parts of an encoder kept in eval mode.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training

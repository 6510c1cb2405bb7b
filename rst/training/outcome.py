"""Warnings at the end of training: little, nothing or far too much is left, and why.

Each is given once, as a warning with the numbers and what to change; the export continues.
"""

import warnings
from typing import Protocol
from weakref import ReferenceType, WeakKeyDictionary, ref

from torch import nn

from rst.config import ASSUMED_STEPS, RSTConfig
from rst.errors import RSTWarning
from rst.operations.top_share import FAR

LARGE_SHARE = 0.3
"""Above this share, a delta is hardly smaller than the model."""

_WATCHED: "WeakKeyDictionary[nn.Module, ReferenceType[Claimant]]" = WeakKeyDictionary()


class Claimant(Protocol):
    """The interface of a trainer that already has a model."""

    suspended: bool

    @property
    def steps(self) -> int:
        """Return the number of optimiser steps seen."""
        ...


def claim(model: nn.Module, trainer: Claimant) -> None:
    """Record that `trainer` has this model; warn if another trainer has it too and has not restored the base."""
    found = _WATCHED.get(model)
    other = None if found is None else found()
    if other is not None and not other.suspended:
        _say(
            f"there is a second trainer on the same {type(model).__name__}: its w0 are the present weights, after "
            f"{other.steps} steps of the first trainer, and both reset weights; delete the first trainer, or load "
            f"its state into this one with load_state_dict"
        )
    _WATCHED[model] = ref(trainer)


def check_outcome(config: RSTConfig, *, steps: int, changed: int, total: int, before: int) -> None:
    """Warn if the result of a training is probably not what was intended.

    Args:
        config: the configuration of the training.
        steps: optimiser steps that the trainer has seen.
        changed: weights that the export keeps.
        total: weights that are trained sparsely.
        before: weights that differed from w0 when the export began.
    """
    if not total:  # empty tensors alone
        return
    share = changed / total
    if not steps and not before:
        _say(
            f"w0 equals the weights: none of {total:,} has changed, and the trainer saw no optimiser step. Create the "
            "trainer before training, and call trainer.attach(optimizer)"
        )
    elif not steps:
        _say(
            f"the trainer saw no optimiser step, but {before:,} of {total:,} weights moved: the export keeps "
            f"{changed:,} and resets the others only now, so an earlier score does not hold for the delta. Call "
            f"trainer.attach(optimizer) before training, or trainer.step() after every step of an optimiser without "
            f"hooks"
        )
    elif not changed:
        _say(f"none of {total:,} weights is kept after {steps} steps; {_advice(config, more=True)}")
    elif share > LARGE_SHARE:
        _say(f"{share:.1%} of {total:,} weights are kept after {steps} steps; {_advice(config, more=False)}")
    elif config.select == "top" and before > FAR * changed:
        length = f"total_steps={config.total_steps}" if config.total_steps else f"{ASSUMED_STEPS} steps, the default"
        _say(
            f"{before:,} of {total:,} weights were kept when the run ended after {steps} steps, but the export keeps "
            f"{changed:,}: an earlier score does not hold for the delta. The share falls over {length}; set "
            "total_steps to the number of training steps, or call trainer.select() before you evaluate"
        )
    elif config.select == "top" and share * FAR < config.exported_ratio(config.progress(steps)):
        wanted = config.exported_ratio(config.progress(steps))
        _say(
            f"{share:.3%} of {total:,} weights changed in {steps} steps, but ratio={wanted:g} asks for {wanted:.3%}: "
            "no other weights moved; raise the learning rate or train longer"
        )


def _advice(config: RSTConfig, *, more: bool) -> str:
    """Return the two settings to change so that more, or less, is kept."""
    rate = f"{'raise' if more else 'lower'} the learning rate"
    if config.select != "threshold":
        return f"{'raise' if more else 'lower'} ratio={config.ratio}, or {rate}"
    tau = "lower" if more else "raise"
    return f"{tau} threshold={config.threshold} or {rate}, or choose how much to keep: RSTConfig(ratio=0.002)"


def _say(text: str) -> None:
    warnings.warn(text, RSTWarning, stacklevel=5)

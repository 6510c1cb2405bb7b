"""Warnings after `rst export`: those of a trainer's own export (`rst.training.outcome`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rst.cli.console import print_warning

if TYPE_CHECKING:
    from rst.delta.sparse_delta import SparseDelta

_WAYS = "--ratio 0.002 keeps that share, and rst tau BASE TUNED shows how many each --threshold would keep"


def warn_of_outcome(delta: "SparseDelta", tuned: Path, record: Mapping[str, Any] | None) -> None:
    """Warn, on stderr, of a delta with nothing, nearly everything or far too little in it, and of an unseen training.

    Args:
        delta: the exported delta.
        tuned: path of the tuned weights.
        record: the trainer's record, if its base was used.
    """
    from rst.operations.top_share import FAR
    from rst.training.outcome import LARGE_SHARE

    weights, asked = delta.base.weights, delta.config.get("ratio") if delta.config.get("select") == "top" else None
    if record is not None and record.get("steps") == 0:
        print_warning(
            f"the trainer whose record is in {tuned} saw no optimiser step: call trainer.attach(optimizer) before the "
            "training, or trainer.step() after each step"
        )
    if not weights:
        return
    if not delta.nnz and delta.config.get("threshold") is not None:
        print_warning(f"none of {weights:,} weights moved by more than {delta.config['threshold']}; {_WAYS}")
    elif not delta.nnz:
        print_warning(
            f"none of {weights:,} weights differs from the base; check that {tuned} was trained, and that "
            f"this is its base"
        )
    elif delta.density > LARGE_SHARE:
        print_warning(f"{delta.density:.1%} of {weights:,} weights are kept; {_WAYS}")
    elif isinstance(asked, float) and delta.density * FAR < asked:
        print_warning(f"{delta.density:.3%} of {weights:,} weights changed, but ratio={asked:g} asks for {asked:.3%}")

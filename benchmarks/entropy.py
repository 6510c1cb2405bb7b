"""The entropy bound: the fewest bits that a changed weight can take on average, for its position and for its value."""

import math

import torch
from torch import Tensor

from benchmarks.checkpoint_pair import TAU, CheckpointPair
from rst.numerics.exactness import ordered_keys

_SAMPLES_A_SYMBOL = 50  # below, the entropy of a sample says more of the sample than of its source


def position_bits(pair: CheckpointPair) -> float:
    """log2 of the ways to choose k of n weights, summed over the tensors, for each changed weight.

    A bound for positions that know nothing of each other; a code can pass it where changes cluster within a tensor.
    """
    total = sum(_log2_binomial(pair.base[name].numel(), where.numel()) for name, where in pair.positions.items())
    return total / pair.changed


def step_bits(pair: CheckpointPair) -> float | None:
    """Entropy of the steps for a code that does not look at w0; None where the sample is too small to tell."""
    _, counts = _steps(pair).unique(return_counts=True)
    return _entropy(counts) if _enough(counts) else None


def step_bits_given_base(pair: CheckpointPair) -> float | None:
    """Entropy of the steps for a code that knows w0, of which only the binade matters; None where it is unknown."""
    binades = torch.frexp(torch.cat(list(pair.at_changes(pair.base).values())).float()).exponent
    _, joint = torch.stack([_steps(pair), binades]).unique(dim=1, return_counts=True)
    if _enough(joint):
        return _entropy(joint) - _entropy(binades.unique(return_counts=True)[1])
    return _drawn_bits(pair) if pair.drawn else None


def _steps(pair: CheckpointPair) -> Tensor:
    origin, target = (torch.cat(list(pair.at_changes(side).values())) for side in (pair.base, pair.tuned))
    return ordered_keys(target).long() - ordered_keys(origin).long()


def _drawn_bits(pair: CheckpointPair) -> float:
    """Entropy of +-tau (1 + Exp(1)), rounded to the grid of the tuned weight, for one who knows w0.

    The differential entropy of tau * Exp(1) is log2(e tau), the sign adds a bit, a grid of width u takes log2 u off.
    """
    target = torch.cat(list(pair.at_changes(pair.tuned).values()))
    _, exponent = torch.frexp(target)
    grid = exponent.double() - 1 + math.log2(torch.finfo(target.dtype).eps)
    return math.log2(math.e * TAU) + 1 - float(grid.mean())


def _log2_binomial(n: int, k: int) -> float:
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)


def _enough(counts: Tensor) -> bool:
    return int(counts.sum()) >= _SAMPLES_A_SYMBOL * counts.numel()


def _entropy(counts: Tensor) -> float:
    shares = counts.double() / counts.sum()
    return float(-(shares * shares.log2()).sum())

"""Which changes survive: by threshold (Eq. 17), the top r % (App. M), or biases only (App. M)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rst.errors import NonFiniteError
from rst.numerics.kth_largest import Floats, Positions, kth_largest
from rst.numerics.rounding import at_most, wide_dtype
from rst.numerics.worker_pool import CHUNK
from rst.training.projection import Project

Tie = tuple[Tensor, Tensor, Tensor]
"""A parameter, row-major positions in it, int64 of shape (n,), and the weights to keep there, of shape (n,)."""

Boundary = tuple[float, list[Tie]]
"""What top-r % selection keeps: the changes above a threshold, and some of those equal to it."""

FindBoundary = Callable[[Mapping[str, Tensor], Mapping[str, Tensor], float], Boundary]


def boundary(tuned: Mapping[str, Tensor], base: Mapping[str, Tensor], ratio: float) -> Boundary:
    """Find the boundary of the top `ratio` of all changes.

    Raises:
        NonFiniteError: a weight is NaN.
    """
    total = sum(weight.numel() for weight in tuned.values())
    budget = round(ratio * total)
    if not budget:
        return float("inf"), []
    wide = wide_dtype(*(weight.dtype for weight in tuned.values()))
    pieces = [piece for name, weight in tuned.items() for piece in pieces_of(name, weight, base)]
    kth = kth_largest(lambda piece, step: piece.changes(step, wide), pieces, budget, total)
    return kth.value, _ties(pieces, kth.ties) if kth.value > 0 else []


def keep_top_(tuned: Mapping[str, Tensor], base: Mapping[str, Tensor], found: Boundary, project: Project) -> None:
    """Keep, in place, the changes above a boundary: `round(ratio * N)` of N weights, fewer only if fewer changed.

    Of equal changes at the boundary, the first ones are kept, in the order of the parameters and of their elements, so
    the result does not depend on the machine.
    """
    threshold, ties = found
    if threshold < 0:  # every weight is kept
        return
    for dtype in dict.fromkeys(weight.dtype for weight in tuned.values()):
        pairs = ((weight, base[name]) for name, weight in tuned.items() if weight.dtype == dtype)
        project(pairs, at_most(threshold, dtype))
    for weight, positions, values in ties:
        weight[torch.unravel_index(positions, weight.shape)] = values


@dataclass(frozen=True)
class Piece:
    """Consecutive elements, in row-major order, of one parameter."""

    name: str
    parameter: Tensor
    start: int
    weight: Tensor
    origin: Tensor

    def changes(self, step: int, dtype: torch.dtype) -> Floats:
        """Return `|wt - w0|` of every `step`-th element, rounded in the parameter's dtype. Raises `NonFiniteError`."""
        weight, origin = self.weight[::step], self.origin[::step]
        change = (weight - origin).abs_()
        if change.amax().isnan():
            # An infinite weight that did not change has change 0, although inf - inf is NaN.
            change[weight == origin] = 0.0
            if change.isnan().any():
                nans = int(self.parameter.isnan().sum())
                raise NonFiniteError(f"{nans} of {self.parameter.numel()} weights are NaN", parameter=self.name)
        array: Floats = change.to(dtype).cpu().numpy()
        return array


def pieces_of(name: str, weight: Tensor, base: Mapping[str, Tensor]) -> Iterator[Piece]:
    """Divide a parameter and its w0 into chunks; an empty parameter has none."""
    if weight.numel() == 0:
        return
    parts = torch.split(weight.reshape(-1), CHUNK), torch.split(base[name].reshape(-1), CHUNK)
    for number, (part, origin) in enumerate(zip(*parts, strict=True)):
        yield Piece(name, weight, number * CHUNK, part, origin)


def _ties(pieces: Sequence[Piece], ties: Sequence[Positions]) -> list[Tie]:
    """Return of the equal changes: parameter, positions in it, and the weights to keep there."""
    chosen = []
    for piece, positions in zip(pieces, ties, strict=False):  # those of the first pieces
        places = torch.from_numpy(positions).to(piece.weight.device)
        chosen.append((piece.parameter, places + piece.start, piece.weight[places]))
    return chosen

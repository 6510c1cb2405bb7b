"""What each tau of Eq. 17 would keep of the change between two checkpoints, and at what cost.

Two passes with one pair of tensors in memory: the first finds taus that keep round shares, the second tries each.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rst.checkpoints.checkpoint import Weights, open_checkpoint
from rst.checkpoints.read_ahead import read_ahead
from rst.config import Patterns
from rst.delta import coo, packed
from rst.delta.parameter_delta import ParameterDelta, changed_weights
from rst.errors import naming_file
from rst.numerics.exactness import bytes_of_tensor
from rst.operations.export import from_two
from rst.operations.extraction import Extraction, Progress, shifted
from rst.operations.top_share import changes, has_residuals
from rst.operations.tuned_checks import check_forms

SHARES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005, 0.0002, 0.0001)
"""Shares of all weights for which a tau is tried, besides tau = 0."""

_DIGITS_OF_TAU = 2
_BITS = 15  # of a float32 that a bin of the histogram ignores: 256 bins an octave
_BINS = 1 << (31 - _BITS)
_ENTRIES_AT_ONCE = 1 << 20


@dataclass
class TauPoint:
    """What one tau keeps.

    Attributes:
        tau: the threshold.
        kept: number of weights that it keeps.
        plain_bytes: their size as index and value arrays.
        packed_bytes: their size in the encoding "packed".
        dropped_l2: Euclidean norm of the changes that it resets.
        dropped_max: the largest of them.
    """

    tau: float
    kept: int = 0
    plain_bytes: int = 0
    packed_bytes: int = 0
    dropped_l2: float = 0.0
    dropped_max: float = 0.0


@dataclass(frozen=True)
class TauCurve:
    """The points of the curve, and the totals for comparison.

    Attributes:
        weights: number of weights that a tau selects from.
        tuned_bytes: bytes of all tuned tensors.
        whole_bytes: bytes of the tensors stored whole beside the selected weights, at any tau.
        l2: Euclidean norm of the whole change, if finite.
        points: with ascending tau.
    """

    weights: int
    tuned_bytes: int
    whole_bytes: int
    l2: float
    points: Sequence[TauPoint]


def tau_curve(
    base: Weights,
    tuned: Weights,
    *,
    modules_to_save: Sequence[str] | None = None,
    exclude_modules: Patterns = None,
    key: str | None = None,
    base_key: str | None = None,
    on_progress: Progress | None = None,
) -> TauCurve:
    """Try tau = 0 and the taus that keep about `SHARES` of the weights, rounded to two digits.

    The bytes are those of the arrays; a file also has a header of some hundred bytes per parameter.

    Args:
        base: as in `rst.export`.
        tuned: as there.
        modules_to_save: as there; not selected from.
        exclude_modules: as there.
        key: as there.
        base_key: as there.
        on_progress: called after each tensor with bytes done and bytes in all.

    Raises:
        As `rst.export`.
    """
    settings = {"modules_to_save": modules_to_save, "exclude_modules": exclude_modules}
    before = open_checkpoint(base, base_key)
    extraction = from_two(before, open_checkpoint(tuned, key), settings, "add")
    check_forms(extraction, before, may_cast=False)
    names = [name for name in extraction.parameters() if has_residuals(extraction.outline(name))]
    once = sum(map(extraction.nbytes, names))
    weights = sum(extraction.outline(name).numel() for name in names)
    taus = _round_shares(_histogram(extraction, names, shifted(on_progress, 0, 2 * once)), weights)
    trial = _Trial([TauPoint(tau) for tau in taus])
    done = once
    for name in read_ahead(names, extraction.base, extraction.tuned):
        trial.add(extraction, name)
        done += extraction.nbytes(name)
        if on_progress:
            on_progress(done, 2 * once)
    trial.finish()
    extraction.check_unchanged()
    return TauCurve(
        weights=weights,
        tuned_bytes=sum(map(extraction.nbytes, extraction.names)),
        whole_bytes=sum(map(extraction.nbytes, extraction.whole)),
        l2=math.sqrt(trial.squares),
        points=trial.points,
    )


def _histogram(extraction: Extraction, names: Sequence[str], on_progress: Progress | None) -> Tensor:
    """Count the changes in each bin of the upper bits of float32."""
    counts, done = torch.zeros(_BINS, dtype=torch.int64), 0
    for name in read_ahead(names, extraction.base, extraction.tuned):
        for change in changes(extraction, name, torch.float32):
            counts += torch.bincount((change.view(torch.int32) >> _BITS).long().cpu(), minlength=_BINS)
        done += extraction.nbytes(name)
        if on_progress:
            on_progress(done, 0)
    return counts


def _round_shares(counts: Tensor, weights: int) -> list[float]:
    """0, and taus that keep about `SHARES` of the weights, ascending; none above which nothing is left."""
    above = counts.flip(0).cumsum(0).flip(0)
    moved = int(above[1])
    taus = {0.0}
    for share in SHARES:
        budget = round(share * weights)
        if 0 < budget < moved:
            bin_ = int((above > budget).nonzero().max())
            edge = float(torch.tensor(bin_ << _BITS, dtype=torch.int32).view(torch.float32))
            taus.add(float(f"{edge:.{_DIGITS_OF_TAU - 1}e}"))
    return sorted(tau for tau in taus if math.isfinite(tau))


@dataclass
class _Trial:
    """The taus, tried on one parameter after another."""

    points: list[TauPoint]
    squares: float = 0.0
    _waiting: dict[float, dict[str, ParameterDelta]] = field(default_factory=dict)

    def add(self, extraction: Extraction, name: str) -> None:
        """Count what each tau keeps of one parameter. Raises as `ParameterDelta.between`."""
        base, tuned = extraction.pair(name)
        with naming_file(extraction.source):
            positions, origin, target = changed_weights(name, base, tuned)
        squares = largest = 0.0
        for point in self.points:
            change = (target - origin).abs_()
            dropped = change <= point.tau  # w0 may be NaN
            put_back = change[dropped].double()
            squares += float(put_back.square().sum())
            point.dropped_l2 += squares  # as a square until the end
            largest = max(largest, float(put_back.max()) if put_back.numel() else 0.0)
            point.dropped_max = max(point.dropped_max, largest)
            positions, origin, target = positions[~dropped], origin[~dropped], target[~dropped]
            point.kept += positions.numel()
            if positions.numel():
                waiting = self._waiting.setdefault(point.tau, {})
                waiting[name] = ParameterDelta.at(positions, origin, target, base.shape, None)
                if sum(kept.nnz for kept in waiting.values()) > _ENTRIES_AT_ONCE:
                    self._weigh(point)
        left = (target - origin).double()
        self.squares += squares + float(left[left.isfinite()].square().sum())
        extraction.release(name)

    def finish(self) -> None:
        """Measure the waiting parameters, and take the square roots."""
        for point in self.points:
            self._weigh(point)
            point.dropped_l2 = math.sqrt(point.dropped_l2)

    def _weigh(self, point: TauPoint) -> None:
        """Measure small parameters together, as a file packs them."""
        if waiting := self._waiting.pop(point.tau, None):
            point.plain_bytes += sum(map(bytes_of_tensor, coo.to_arrays(waiting).values()))
            point.packed_bytes += sum(map(bytes_of_tensor, packed.to_arrays(waiting).values()))

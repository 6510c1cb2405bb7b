"""Values that change over training: tau (App. J, L) and the kept ratio r (App. M).

A schedule is any callable from progress in [0, 1] to a number. The named ones survive a round trip through JSON.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rst.errors import ConfigError

Schedule = Callable[[float], float]


@dataclass(frozen=True)
class Constant:
    """The same value at every step."""

    value: float

    def __call__(self, progress: float) -> float:
        """Return the value; `progress` is ignored."""
        return self.value


@dataclass(frozen=True)
class Linear:
    """A straight line from `start` at progress 0 to `end` at progress `by`, constant afterwards.

    >>> Linear(5e-4, 3.5e-2)(0.0)
    0.0005
    """

    start: float
    end: float
    by: float = 1.0

    def __call__(self, progress: float) -> float:
        """Return the value at `progress` in [0, 1]; both ends are exact."""
        share = _share_done(progress, self.by)
        return self.start * (1.0 - share) + self.end * share


@dataclass(frozen=True)
class Geometric:
    """A geometric curve from `start` at progress 0 to `end` at progress `by`, constant afterwards; both are positive.

    >>> Geometric(1.0, 0.01)(0.5)
    0.1
    """

    start: float
    end: float
    by: float = 1.0

    def __call__(self, progress: float) -> float:
        """Return the value at `progress` in [0, 1]; both ends are exact."""
        share = _share_done(progress, self.by)
        if share in (0.0, 1.0):
            return self.end if share else self.start
        return float(self.start ** (1.0 - share) * self.end**share)


def _share_done(progress: float, by: float) -> float:
    return min(progress / by, 1.0) if by > 0.0 else 1.0


_NAMED: dict[str, type[Constant] | type[Linear] | type[Geometric]] = {
    "constant": Constant,
    "linear": Linear,
    "geometric": Geometric,
}


def as_schedule(value: float | Schedule) -> Schedule:
    """Turn a number into a `Constant`; leave a callable as it is."""
    return value if callable(value) else Constant(float(value))


def schedule_to_json(value: float | Schedule) -> Any:
    """Describe a number or schedule in JSON types; a custom callable is described by name only."""
    if not callable(value):
        return float(value)
    for name, kind in _NAMED.items():
        if isinstance(value, kind):
            return {"schedule": name, **vars(value)}
    return {"schedule": "custom", "name": getattr(value, "__qualname__", type(value).__name__)}


def schedule_from_json(value: Any) -> float | Schedule:
    """Invert `schedule_to_json`. Raises `ConfigError` for a custom callable, which JSON cannot hold."""
    kind = value.get("schedule") if isinstance(value, dict) else "constant"
    if not isinstance(kind, str) or kind not in _NAMED:
        raise ConfigError(f"cannot rebuild the schedule {str(value)[:300]}; known schedules are {sorted(_NAMED)}")
    try:
        if not isinstance(value, dict):
            return _number(value)
        return _NAMED[kind](**{key: _number(number) for key, number in value.items() if key != "schedule"})
    except (TypeError, OverflowError) as error:
        raise ConfigError(f"schedule {str(value)[:99]}: {error}") from None


def _number(value: Any) -> float:
    if type(value) not in (int, float):
        raise TypeError(f"{str(value)[:99]!r} is not a number")
    return float(value)

"""What to track, what to keep, and when: the one configuration object of the library."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from rst.errors import ConfigError
from rst.schedule import Schedule, as_schedule, schedule_from_json, schedule_to_json

Selection = Literal["threshold", "top", "bias"]
BaseStorage = Literal["device", "cpu", "mmap"]
Patterns = str | Sequence[str] | None

_SCHEDULED = ("threshold", "ratio")


@dataclass(frozen=True, kw_only=True)
class RSTConfig:
    """Settings of Residual Sparse Training.

    >>> RSTConfig(threshold=1e-6, modules_to_save=["head"])

    Attributes:
        threshold: tau of Eq. 17, a number or a schedule of progress in [0, 1]. It is rounded to each parameter's dtype.
        select: "threshold" keeps `|wt - w0| > tau` (Eq. 17), "top" keeps the share `ratio` of all tracked weights that
            changed most (App. M), "bias" lets only biases move while gradients flow through everything (App. M).
        ratio: for `select="top"`: a fraction in (0, 1], or a schedule of it. The paper's r = 0.2 % is 0.002.
        target_modules: parameters to train sparsely; a list of names or name suffixes, or one regular expression that
            must match a whole name, of the parameter or of a module above it. None means every trainable parameter.
        exclude_modules: taken out of `target_modules`, written the same way. What is neither targeted nor saved whole
            is frozen.
        modules_to_save: modules trained freely and stored whole (a task head).
        every: project after each n-th optimiser step; 0 selects once, at export.
        total_steps: optimiser steps of the whole run; a schedule reaches progress 1 there. Needed by schedules only.
        base_storage: where `w0` lives: beside the weights, in CPU memory, or in a memory-mapped temporary file.
    """

    threshold: float | Schedule = 1e-6
    select: Selection = "threshold"
    ratio: float | Schedule | None = None
    target_modules: Patterns = None
    exclude_modules: Patterns = None
    modules_to_save: Sequence[str] | None = None
    every: int = 1
    total_steps: int | None = None
    base_storage: BaseStorage = "device"

    def __post_init__(self) -> None:
        """Refuse settings that cannot mean anything. Raises `ConfigError`."""
        _check_choice("select", self.select, get_args(Selection))
        _check_choice("base_storage", self.base_storage, get_args(BaseStorage))
        if self.every < 0:
            raise ConfigError(
                f"every={self.every}: write n >= 1 to project each n steps, or 0 to select at export only"
            )
        if isinstance(self.modules_to_save, str):
            raise ConfigError(f"modules_to_save={self.modules_to_save!r}: write a list, [{self.modules_to_save!r}]")
        if self.select == "top" and self.ratio is None:
            raise ConfigError('select="top" needs ratio, the fraction of weights to keep (0.002 keeps 0.2 %)')
        if self.select != "top" and self.ratio is not None:
            raise ConfigError(f'ratio={self.ratio} has no meaning with select="{self.select}"; write select="top"')
        scheduled = callable(self.threshold) or callable(self.ratio)
        if scheduled and (self.total_steps is None or self.total_steps < 1):
            raise ConfigError(f"a schedule needs total_steps >= 1, got {self.total_steps}")
        self.threshold_at(0.0)
        if self.ratio is not None:
            self.ratio_at(0.0)

    def threshold_at(self, progress: float) -> float:
        """Tau at `progress` in [0, 1]. Raises `ConfigError` if it is negative or not finite."""
        tau = as_schedule(self.threshold)(progress)
        if not (math.isfinite(tau) and tau >= 0):
            raise ConfigError(f"threshold={tau} at progress {progress:g}: must be finite and at least 0")
        return tau

    def ratio_at(self, progress: float) -> float:
        """Kept fraction at `progress` in [0, 1]. Raises `ConfigError` outside (0, 1]."""
        ratio = as_schedule(self.ratio if self.ratio is not None else 1.0)(progress)
        if not 0 < ratio <= 1:
            raise ConfigError(f"ratio={ratio} at progress {progress:g}: a fraction in (0, 1]; 0.2 % is 0.002")
        return ratio

    def to_dict(self) -> dict[str, Any]:
        """Settings in JSON types, without those left at None."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in _SCHEDULED:
            if values[name] is not None:
                values[name] = schedule_to_json(values[name])
        return {name: _plain(value) for name, value in values.items() if value is not None}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RSTConfig":
        """Invert `to_dict`. Raises `ConfigError` for an unknown setting, or one of the wrong kind."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ConfigError(f"unknown settings {unknown}; known are {[field.name for field in fields(cls)]}")
        for name, fits in _KINDS.items():
            if name in values and not fits(values[name]):
                raise ConfigError(f"{name}={str(values[name])[:99]!r}: not what this setting can be")
        scheduled: dict[str, Any] = {name: schedule_from_json(values[name]) for name in _SCHEDULED if name in values}
        return cls(**{**values, **scheduled})

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.to_dict(), sort_keys=True)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name}={str(value)[:99]!r}: choose one of {list(choices)}")


def _is_names(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)


def _is_patterns(value: Any) -> bool:
    return isinstance(value, str) or _is_names(value)


# JSON says nothing of kinds; a stranger's settings are read before they are used.
_KINDS: dict[str, Callable[[Any], bool]] = {
    "select": lambda value: isinstance(value, str),
    "target_modules": _is_patterns,
    "exclude_modules": _is_patterns,
    "modules_to_save": _is_names,
    "every": lambda value: type(value) is int,
    "total_steps": lambda value: type(value) is int,
    "base_storage": lambda value: isinstance(value, str),
}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value

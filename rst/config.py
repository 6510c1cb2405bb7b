"""What to track, what to keep, and when: the one configuration object of the library."""

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

from rst.errors import ConfigError
from rst.schedule import Geometric, Schedule, as_schedule, schedule_from_json, schedule_to_json

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from rst.live.hub import HubOptions

Selection = Literal["threshold", "top", "bias", "support"]
CopyStorage = Literal["device", "cpu", "mmap"]
BaseStorage = CopyStorage | Literal["sparse"]
Patterns = str | Sequence[str] | None

DEFAULT_RATIO = 0.002
"""Share of the weights to keep by default: the paper's r = 0.2 % (App. M)."""

FALLS_UNTIL = 0.5
"""Progress at which the share has fallen from 1 to a `ratio` that is a number."""

ASSUMED_STEPS = 200
"""Assumed length of a run whose `total_steps` is not known; a share falls over the first half of it."""

_SCHEDULED = ("threshold", "ratio")


@dataclass(frozen=True, kw_only=True)
class RSTConfig:
    """Settings of Residual Sparse Training.

    >>> RSTConfig(ratio=0.001, total_steps=1000, modules_to_save=["head"])  # keeps 0.1 % of the weights

    Attributes:
        ratio: the share of all tracked weights to keep: those that changed most (App. M). The paper's r = 0.2 % is
            0.002, which is also the default if neither `ratio` nor `threshold` is given. With a number, the share falls
            geometrically from 1 to that number over the first half of the run, so that the noise of the first steps
            does not decide which weights are kept; the export keeps exactly that share, whenever you call it. A
            schedule, a callable of the progress in [0, 1], is used as it is; `Constant` keeps the same share from the
            first step on.
        threshold: tau of Eq. 17 instead of a share, a number or a schedule: weights that moved by no more than tau are
            reset to `w0`. It is rounded to each parameter's dtype and must suit the optimiser: AdamW moves every weight
            by about its learning rate at each step.
        select: "top" (a ratio) or "threshold", by default the one that is given; "bias" lets only biases change while
            gradients flow through everything (App. M); "support" trains the weights of a `Support`, chosen beforehand,
            and keeps optimiser state for those only.
        target_modules: parameters to train sparsely; a list of names or name suffixes, or one regular expression that
            must match a whole name, of the parameter or of a module above it. None means every trainable parameter,
            "all-linear" those of linear layers, without a language model's output layer.
        exclude_modules: excluded from `target_modules`, in the same notation. Parameters that are neither targeted nor
            saved whole are frozen.
        modules_to_save: modules that are trained without selection and stored whole (a task head).
        every: project after every n-th optimiser step; 0 selects once, at export.
        total_steps: optimiser steps of the whole run; a schedule reaches progress 1 there. Schedules need it; a number
            as `ratio` assumes `ASSUMED_STEPS` without it. The callbacks for Trainer and Lightning fill it in.
        base_storage: where `w0` is stored: next to the weights ("device"), in CPU memory ("cpu"), in a memory-mapped
            temporary file ("mmap"), or ("sparse") only where it differs from the weights. The copy that a step needs
            is in the gradients' memory then, and gradients are None after it, for an optimiser of torch without a
            closure, L-BFGS or hooks of others; else it is a copy beside them. None is "device" until `attach`, and
            from then on "sparse" with gradients that stay.
    """

    ratio: float | Schedule | None = None
    threshold: float | Schedule | None = None
    select: Selection | None = None
    target_modules: Patterns = None
    exclude_modules: Patterns = None
    modules_to_save: Sequence[str] | None = None
    every: int = 1
    total_steps: int | None = None
    base_storage: BaseStorage | None = None

    def __post_init__(self) -> None:
        """Choose the selection if none is named, and reject invalid settings.

        Raises:
            ConfigError: names the setting.
        """
        if self.select is None:
            object.__setattr__(self, "select", "top" if self.threshold is None else "threshold")
        if self.select == "top" and self.ratio is None:
            object.__setattr__(self, "ratio", DEFAULT_RATIO)
        _check_choice("select", self.select, get_args(Selection))
        if self.base_storage is not None:
            _check_choice("base_storage", self.base_storage, (*get_args(CopyStorage), "sparse"))
        if self.select == "support" and self.base_storage not in (None, "sparse"):
            raise ConfigError(
                f'base_storage={self.base_storage!r} has no effect with select="support", which needs '
                f"no copy of w0; leave it out"
            )
        if self.every < 0:
            raise ConfigError(
                f"every={self.every}: must be n >= 1 to project every n steps, or 0 to select only at export"
            )
        if isinstance(self.modules_to_save, str):
            raise ConfigError(
                f"modules_to_save={self.modules_to_save!r}: must be a list, such as [{self.modules_to_save!r}]"
            )
        self._check_one_rule()
        scheduled = callable(self.threshold) or callable(self.ratio)
        if (self.total_steps is None and scheduled) or (self.total_steps is not None and self.total_steps < 1):
            raise ConfigError(f"total_steps={self.total_steps}: a schedule needs total_steps >= 1")
        if self.threshold is not None:
            self.threshold_at(0.0)
        if self.ratio is not None:
            self.ratio_at(0.0)

    def _check_one_rule(self) -> None:
        for setting, rule in (("threshold", "threshold"), ("ratio", "top")):
            value = getattr(self, setting)
            if value is not None and self.select != rule:
                raise ConfigError(f'{setting}={value} has no effect with select="{self.select}"; leave one of them out')
        if self.select == "threshold" and self.threshold is None:
            raise ConfigError('select="threshold" needs threshold, the tau of Eq. 17')

    def progress(self, steps: int) -> float:
        """Return the progress of a run after `steps` optimiser steps, in [0, 1]; 1 if nothing depends on it."""
        if self.total_steps is not None:
            return min(steps / self.total_steps, 1.0)
        return min(steps / ASSUMED_STEPS, 1.0) if self.ratio is not None else 1.0

    def threshold_at(self, progress: float) -> float:
        """Return tau at `progress` in [0, 1]. Raises `ConfigError` if it is negative, not finite or not set."""
        if self.threshold is None:
            raise ConfigError(f'select="{self.select}" takes no threshold')
        tau = as_schedule(self.threshold)(progress)
        if not (math.isfinite(tau) and tau >= 0):
            raise ConfigError(f"threshold={tau}{_at(self.threshold, progress)}: must be finite and at least 0")
        return tau

    def ratio_at(self, progress: float) -> float:
        """Return the kept share at `progress` in [0, 1]. Raises `ConfigError` outside (0, 1], or if there is none."""
        if self.ratio is None:
            raise ConfigError(f'select="{self.select}" takes no ratio')
        share = self.ratio(progress) if callable(self.ratio) else self.ratio
        if not 0 < share <= 1:
            place = _at(self.ratio, progress)
            raise ConfigError(f"ratio={share}{place}: must be a fraction in (0, 1]; 0.2 % is 0.002")
        return share if callable(self.ratio) else Geometric(1.0, share, by=FALLS_UNTIL)(progress)

    def exported_ratio(self, progress: float) -> float:
        """Return the share that an export at `progress` keeps: the final one, however early, or the schedule's."""
        return self.ratio_at(progress if callable(self.ratio) else 1.0)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings in JSON types, without those that are None."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in _SCHEDULED:
            if values[name] is not None:
                values[name] = schedule_to_json(values[name])
        return {name: _plain(value) for name, value in values.items() if value is not None}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RSTConfig":
        """Invert `to_dict`.

        The values may come from an untrusted file, so patterns must be fast to match (`rst.limited_pattern`).

        Raises:
            ConfigError: an unknown setting, one of the wrong kind, or such a pattern.
        """
        from rst.limited_pattern import check_quick

        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ConfigError(f"unknown settings {unknown}; known settings are {[field.name for field in fields(cls)]}")
        for name, fits in _KINDS.items():
            if name in values and not fits(values[name]):
                raise ConfigError(f"{name}={str(values[name])[:99]!r}: not a valid value for this setting")
            if fits is _is_patterns and isinstance(values.get(name), str):
                check_quick(name, values[name])
        if values.get("select") in ("top", "bias"):  # versions before 0.2 also wrote the unused default
            values = {name: value for name, value in values.items() if name != "threshold"}
        scheduled: dict[str, Any] = {name: schedule_from_json(values[name]) for name in _SCHEDULED if name in values}
        return cls(**{**values, **scheduled})

    def save_pretrained(self, save_directory: "str | os.PathLike[str]") -> None:
        """Write `rst_config.json` into a folder, as PEFT's configurations do; a base that is named there stays.

        Raises:
            DeltaFormatError: the folder has another file of that name.
            OSError: the folder cannot be written.
        """
        from rst.live.adapter_folder import write_settings

        write_settings(save_directory, self.to_dict())

    @classmethod
    def from_pretrained(cls, model_id: "str | os.PathLike[str]", **hub: "Unpack[HubOptions]") -> "RSTConfig":
        """Read the configuration of an adapter: a folder, or a repository on the hub.

        Args:
            model_id: where.
            **hub: which revision, subfolder and so on: `rst.live.hub.HubOptions`.

        Raises:
            CheckpointError: there is no `rst_config.json`.
            ConfigError: an unknown keyword; the file has no settings, or unknown ones.
            DeltaFormatError: the file is damaged.
        """
        from rst.delta.file import CONFIG_FILE, read_settings
        from rst.live.hub import find_adapter

        settings, _ = read_settings(find_adapter(model_id, (CONFIG_FILE,), **hub))
        if not settings:
            raise ConfigError(
                f"{os.fspath(model_id)}: the adapter contains no settings, which are needed to continue its training"
            )
        return cls.from_dict(settings)

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(self.to_dict(), sort_keys=True)


def _check_choice(name: str, value: str | None, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name}={str(value)[:99]!r}: choose one of {list(choices)}")


def _is_names(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)


def _is_patterns(value: Any) -> bool:
    return isinstance(value, str) or _is_names(value)


# JSON says nothing of kinds; untrusted settings are checked before they are used.
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


def _at(setting: float | Schedule, progress: float) -> str:
    return f" at progress {progress:g}" if callable(setting) else ""

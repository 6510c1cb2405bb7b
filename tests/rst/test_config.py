"""Settings: what is refused, and the round trip through JSON."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rst import ConfigError, Constant, Linear, RSTConfig

CONFIGS = [
    RSTConfig(),
    RSTConfig(threshold=Linear(5e-4, 3.5e-2), total_steps=40_000, modules_to_save=["head"]),
    RSTConfig(threshold=Constant(1e-6), total_steps=1, base_storage="mmap"),
    RSTConfig(select="top", ratio=Linear(1.0, 0.002), total_steps=10, every=5),
    RSTConfig(select="bias", target_modules=r"blocks\..*", exclude_modules=("norm",), every=0),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.select)
def test_json_round_trip(config: RSTConfig) -> None:
    rebuilt = RSTConfig.from_dict(json.loads(config.to_json()))
    assert rebuilt.to_json() == config.to_json()
    assert rebuilt.threshold_at(0.3) == config.threshold_at(0.3)
    assert rebuilt.ratio_at(0.3) == config.ratio_at(0.3)


@given(st.floats(1e-12, 1), st.floats(1e-12, 1))
def test_a_linear_schedule_hits_both_ends_and_stays_between(start: float, end: float) -> None:
    schedule = Linear(start, end)
    assert (schedule(0.0), schedule(1.0)) == (start, end)
    assert min(start, end) <= schedule(0.5) <= max(start, end)


def test_a_custom_callable_works_but_is_recorded_by_name_only() -> None:
    def cosine(progress: float) -> float:
        return 1e-3 * progress

    config = RSTConfig(threshold=cosine, total_steps=4)
    assert config.threshold_at(0.5) == 5e-4
    assert "cosine" in config.to_json()
    with pytest.raises(ConfigError, match="cosine"):
        RSTConfig.from_dict(config.to_dict())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": -1.0}, "threshold=-1.0"),
        ({"threshold": float("nan")}, "threshold=nan"),
        ({"threshold": Linear(0.0, 1.0)}, "total_steps"),
        ({"select": "random"}, "select='random'"),
        ({"select": "top"}, "ratio"),
        ({"select": "top", "ratio": 100}, "ratio=100"),
        ({"ratio": 0.1}, 'select="top"'),
        ({"every": -1}, "every=-1"),
        ({"modules_to_save": "head"}, "modules_to_save='head'"),
        ({"base_storage": "disk"}, "base_storage='disk'"),
    ],
)
def test_refusals_name_the_setting(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RSTConfig(**settings)


def test_unknown_settings_of_a_file_are_named() -> None:
    with pytest.raises(ConfigError, match="'tau'"):
        RSTConfig.from_dict({"tau": 1e-6})
    with pytest.raises(ConfigError, match="schedule"):
        RSTConfig.from_dict({"threshold": {"schedule": "linear", "begin": 1}})

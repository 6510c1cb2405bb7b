"""Settings: what is refused, and the round trip through JSON."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rst import ConfigError, Constant, Geometric, Linear, RSTConfig

CONFIGS = [
    RSTConfig(),
    RSTConfig(threshold=Linear(5e-4, 3.5e-2), total_steps=40_000, modules_to_save=["head"]),
    RSTConfig(threshold=Constant(1e-6), total_steps=1, base_storage="mmap"),
    RSTConfig(ratio=0.01),
    RSTConfig(select="top", ratio=Linear(1.0, 0.002), total_steps=10, every=5),
    RSTConfig(ratio=Geometric(1.0, 0.002, by=0.25), total_steps=10),
    RSTConfig(select="bias", target_modules=r"blocks\..*", exclude_modules=("norm",), every=0),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.select)
def test_json_round_trip(config: RSTConfig) -> None:
    rebuilt = RSTConfig.from_dict(json.loads(config.to_json()))
    assert rebuilt.to_json() == config.to_json()
    assert rebuilt.select == config.select
    if config.threshold is not None:
        assert rebuilt.threshold_at(0.3) == config.threshold_at(0.3)
    if config.ratio is not None:
        assert rebuilt.ratio_at(0.3) == config.ratio_at(0.3)


def test_a_share_is_what_a_configuration_says_unless_it_names_a_threshold() -> None:
    assert (RSTConfig().select, RSTConfig().ratio) == ("top", 0.002)
    assert (RSTConfig(ratio=0.01).select, RSTConfig(threshold=1e-6).select) == ("top", "threshold")


def test_the_share_falls_to_a_number_over_the_first_half_and_an_export_keeps_it_whenever_it_comes() -> None:
    config = RSTConfig(ratio=1e-4, total_steps=8)
    shares = [config.ratio_at(config.progress(step)) for step in range(9)]
    assert shares == pytest.approx([1.0, 1e-1, 1e-2, 1e-3, *[1e-4] * 5])
    assert (shares[0], shares[4]) == (1.0, 1e-4)
    assert config.exported_ratio(config.progress(1)) == 1e-4
    constant = RSTConfig(ratio=Constant(0.5), total_steps=8)
    assert {constant.ratio_at(0.0), constant.exported_ratio(0.0)} == {0.5}


def test_the_settings_of_earlier_releases_are_read() -> None:
    assert RSTConfig.from_dict({"select": "top", "ratio": 0.1, "threshold": 1e-6}).threshold is None


@given(
    st.sampled_from([Linear, Geometric]),
    st.floats(1e-12, 1),
    st.floats(1e-12, 1),
    st.floats(0, 1, exclude_min=True),
    st.floats(0, 1),
)
def test_a_schedule_hits_both_ends_and_stays_between(
    kind: type[Linear | Geometric], start: float, end: float, by: float, progress: float
) -> None:
    schedule = kind(start, end, by)
    assert (schedule(0.0), schedule(by), schedule(1.0)) == (start, end, end)
    assert min(start, end) * (1 - 1e-9) <= schedule(progress) <= max(start, end) * (1 + 1e-9)


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
        ({"select": "threshold"}, "threshold"),
        ({"threshold": 1e-6, "ratio": 0.1}, "ratio=0.1"),
        ({"threshold": 1e-6, "select": "bias"}, "threshold=1e-06"),
        ({"total_steps": 0}, "total_steps=0"),
        ({"ratio": Linear(1.0, 0.1)}, "total_steps=None"),
        ({"select": "top", "ratio": 100}, "ratio=100"),
        ({"ratio": 0.1, "select": "bias"}, 'select="bias"'),
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

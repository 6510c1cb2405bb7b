"""Patterns from files: the usual are taken, those that could take for ever are refused before they are tried."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rst import CheckpointError, ConfigError, RSTConfig, RSTModel, export, get_rst_model
from rst.interop.peft_adapters import from_peft
from rst.limited_pattern import check_quick
from rst.live.adapter_folder import write_adapter
from tests.refusal import refused

USUAL = [
    "all-linear",
    r".*\.(q|k|v)_proj",
    r"layers\.\d+\.mlp\.(up|down)_proj",
    r".*decoder.*(SelfAttention|EncDecAttention).*(q|v)$",
    r"^(?!.*vision).*proj$",
    r"model\.layers\.([0-9]|1[0-5])\.self_attn\.[qv]_proj",
    "|".join(f"model\\.layers\\.{number}\\.q_proj" for number in range(500)),
    r"(?:encoder|decoder)?\.?head",
]
ENDLESS = [
    "(a|a)*!",
    "(([a-z0-9_.])*)*!",
    "(.*)*x",
    "(x+x+)+y",
    "(a|ab)" * 40 + "!",
    ".*.*.*.*.*!",
    r"(\w+)\1",
    "(?:a?){30}a{30}",
    "((a{1,9}){1,9}){1,9}!",
]


@pytest.mark.parametrize("pattern", USUAL)
def test_the_usual_are_taken(pattern: str) -> None:
    check_quick("target_modules", pattern)


@pytest.mark.parametrize("pattern", [*ENDLESS, "(", "a" * (1 << 19), "(" * 5000])
def test_what_could_take_for_ever_is_refused(pattern: str) -> None:
    with refused(ConfigError, "target_modules", repr(pattern[:99])):
        check_quick("target_modules", pattern)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


@pytest.mark.parametrize("setting", ["target_modules", "exclude_modules"])
def test_an_adapters_settings_run_no_endless_pattern(tmp_path: Path, setting: str) -> None:
    write_adapter(tmp_path, export(network(), network()))
    path = tmp_path / "rst_config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "config": {"threshold": 1e-6, setting: ENDLESS[0]}}))
    with refused(ConfigError, setting, repr(ENDLESS[0])):
        get_rst_model(network(), RSTConfig.from_pretrained(tmp_path))
    path.write_text(json.dumps({**content, "config": {"threshold": 1e-6, "target_modules": r"[02]\.weight"}}))
    assert RSTConfig.from_pretrained(tmp_path).target_modules == r"[02]\.weight"


def test_a_delta_whose_settings_hold_an_endless_pattern_is_not_trained_on(tmp_path: Path) -> None:
    delta = export(network(), network())
    delta = replace(delta, config={"threshold": 1e-6, "target_modules": ENDLESS[0]})
    write_adapter(tmp_path, delta)
    with refused(ConfigError, "target_modules"):
        RSTModel.from_pretrained(network(), tmp_path, is_trainable=True)


def test_a_pattern_that_somebody_types_is_any(tmp_path: Path) -> None:
    assert RSTConfig(target_modules=r"(0|1|2)+\.weight").target_modules == r"(0|1|2)+\.weight"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["0"], modules_to_save=["2"])
    peft.get_peft_model(network(), config).save_pretrained(tmp_path)
    return tmp_path


def altered(folder: Path, **settings: Any) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return folder


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("target_modules", ENDLESS[0]),
        ("exclude_modules", ENDLESS[0]),
        ("layers_pattern", [ENDLESS[0]]),
        ("layers_pattern", ENDLESS[0]),
        ("rank_pattern", {ENDLESS[0]: 2}),
        ("alpha_pattern", {ENDLESS[0]: 2}),
        ("rank_pattern", {str(number): 2 for number in range(2000)}),
    ],
    ids=str,
)
def test_peft_gets_no_endless_pattern(adapter: Path, setting: str, value: Any) -> None:
    with refused(CheckpointError, setting, file="adapter_config.json"):
        from_peft(altered(adapter, **{setting: value}), network())


@pytest.mark.parametrize("settings", [{"r": 7}, {"rank_pattern": {"2": 7}}], ids=str)
def test_a_rank_that_no_stored_tensor_has_is_refused(adapter: Path, settings: dict[str, Any]) -> None:
    with refused(CheckpointError, next(iter(settings)), 6, file="adapter_config.json"):
        from_peft(altered(adapter, **settings), network())


def test_ranks_whose_factors_are_larger_than_the_base_are_refused(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    narrow = nn.Sequential(nn.Linear(1, 1))
    config = peft.LoraConfig(r=200_000, target_modules=["0"])
    peft.get_peft_model(narrow, config).save_pretrained(tmp_path)
    with refused(CheckpointError, "r", 200_000, file="adapter_config.json"):
        from_peft(altered(tmp_path, target_modules="all-linear"), nn.Sequential(*[nn.Linear(64, 64)] * 4))


def test_an_honest_adapter_with_patterns_is_read(adapter: Path) -> None:
    delta = from_peft(altered(adapter, target_modules=r"0|9", rank_pattern={r"^0$": 2}), network())
    assert "2.weight" in delta.dense
    assert torch.isfinite(delta.dense["2.weight"]).all()

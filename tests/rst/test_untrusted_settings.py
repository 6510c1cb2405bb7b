"""Untrusted settings, names and records are refused by the errors of this library, and lead nowhere else."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rst import CheckpointError, ConfigError, DeltaFormatError, RSTConfig, RSTModel, SparseDelta, export, get_rst_model
from rst.interop.peft_adapters import from_peft
from rst.live.adapter_folder import adapter_subfolder, write_adapter
from rst.sync.chain import step_of_name
from tests.refusal import refused


@pytest.mark.parametrize(
    "settings",
    [
        {"threshold": "1e-6"},
        {"threshold": [1]},
        {"threshold": True},
        {"threshold": 10**400},
        {"threshold": {"schedule": "linear", "start": "0", "end": 1}, "total_steps": 3},
        {"threshold": {"schedule": ["linear"]}},
        {"select": []},
        {"every": "1"},
        {"every": 1.5},
        {"total_steps": "x"},
        {"target_modules": 3},
        {"target_modules": [["a"]]},
        {"modules_to_save": {"a": 1}},
        {"exclude_modules": [1]},
        {"base_storage": {}},
    ],
    ids=str,
)
def test_settings_of_the_wrong_kind(settings: dict[str, Any]) -> None:
    with refused(ConfigError, "schedule" if "threshold" in settings else next(iter(settings))):
        RSTConfig.from_dict(settings)


def test_a_pattern_that_is_none() -> None:
    with refused(ConfigError, "target_modules", "'("):
        get_rst_model(nn.Linear(2, 2), RSTConfig(target_modules="("))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"format": "rst", "format": "rst"}', '{"format": NaN}', "\ud800"])
def test_a_configuration_that_is_no_plain_json(tmp_path: Path, text: str) -> None:
    write_adapter(tmp_path, export({"w": torch.zeros(3)}, {"w": torch.ones(3)}))
    (tmp_path / "rst_config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with refused(DeltaFormatError, file="rst_config.json"):
        SparseDelta.load(tmp_path)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "/x", "a/b", "a\\b", "a\0b"])
def test_adapter_names_that_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    with refused(ConfigError, repr(name)):
        adapter_subfolder(tmp_path, name)


def test_an_adapter_is_not_written_through_a_link(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    outside.mkdir(), folder.mkdir()
    (folder / "x").symlink_to(outside)
    model = RSTModel(nn.Linear(2, 2))
    model.add_adapter("x", export({"weight": torch.zeros(2, 2)}, {"weight": torch.zeros(2, 2)}))
    with refused(ConfigError, "'x'", folder / "x"):
        model.save_pretrained(folder)
    assert not list(outside.iterdir())


@pytest.mark.parametrize("digits", ["7", "٠٠٠٠٠٠٠٠٠٣", "00000000007", "9" * 5000])
def test_names_that_the_chain_does_not_write_are_no_steps(digits: str) -> None:
    assert step_of_name(f"delta-{digits}.safetensors") is None
    assert step_of_name("delta-0000000007.safetensors") == 7
    assert step_of_name("anchor-12345678901.safetensors") == 12345678901


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"peft_type": "LORA", "megatron_config": {"x": 1}, "megatron_core": "antigravity"}, "megatron_config"),
        ({"peft_type": "XLORA", "adapters": {"a": "/elsewhere"}}, "adapters"),
        ({"peft_type": "LORA", "r": 1 << 40}, "r "),
        ({"peft_type": "LORA", "r": 2, "rank_pattern": {"x": 1 << 40}}, "rank_pattern"),
        ({"peft_type": "LORA", "target_modules": {"x": 1}, "r": []}, "PEFT"),
        ([], "JSON"),
    ],
    ids=str,
)
def test_what_an_adapter_may_not_make_peft_do(tmp_path: Path, content: Any, named: str) -> None:
    pytest.importorskip("peft")
    (tmp_path / "adapter_config.json").write_text(json.dumps(content))
    with refused(CheckpointError, named):
        from_peft(tmp_path, nn.Sequential(nn.Linear(2, 2)))

"""A checkpoint with several sets of weights: which is meant is a question, never the first."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from rst import CheckpointError, export, merge, open_checkpoint
from rst.cli import app
from tests.refusal import refused


def weights(value: float) -> dict[str, Tensor]:
    return {"w": torch.full((3,), value)}


def checkpoint() -> dict[str, object]:
    return {"state_dict": weights(1.0), "state_dict_ema": weights(2.0), "optimizer": {"state": {}}, "epoch": 3}


@pytest.mark.parametrize("other", ["state_dict_ema", "ema", "model_ema", "swa_model", "averaged_model", "model"])
def test_several_sets_are_a_question(tmp_path: Path, other: str) -> None:
    path = tmp_path / "tuned.pt"
    torch.save({"state_dict": weights(1.0), other: weights(2.0)}, path)
    with refused(CheckpointError, "'state_dict'", repr(other), file=path):
        export(weights(0.0), path)
    with refused(CheckpointError, repr(other)):
        export(weights(0.0), torch.load(path))
    for key, value in (("state_dict", 1.0), (other, 2.0)):
        assert open_checkpoint(path, key)["w"].tolist() == [value] * 3
        assert merge(weights(0.0), export(weights(0.0), path, key=key))["w"].tolist() == [value] * 3
    with refused(CheckpointError, "'gone'", file=path):
        open_checkpoint(path, "gone")


def test_a_key_that_is_not_there_is_refused_where_there_is_one_set(tmp_path: Path) -> None:
    torch.save({"model": {"state_dict": weights(1.0)}, "epoch": 1}, tmp_path / "a.pt")
    assert open_checkpoint(tmp_path / "a.pt")["w"].tolist() == [1.0] * 3
    assert open_checkpoint(tmp_path / "a.pt", "state_dict")["w"].tolist() == [1.0] * 3
    with refused(CheckpointError, "'ema'", file="a.pt"):
        open_checkpoint(tmp_path / "a.pt", "ema")


def test_a_merge_changes_the_set_that_was_named(tmp_path: Path) -> None:
    torch.save(checkpoint(), tmp_path / "base.pt")
    torch.save(weights(5.0), tmp_path / "tuned.pt")
    run = CliRunner().invoke(
        app, ["export", "--base", str(tmp_path / "base.pt"), str(tmp_path / "tuned.pt"), "--base-key", "state_dict_ema"]
    )
    assert run.exit_code == 0, run.output
    args = ["merge", str(tmp_path / "base.pt"), str(tmp_path / "tuned.delta.safetensors"), "-o", str(tmp_path / "m.pt")]
    assert isinstance(CliRunner().invoke(app, args).exception, CheckpointError)
    assert CliRunner().invoke(app, [*args, "--key", "state_dict_ema"]).exit_code == 0
    merged = torch.load(tmp_path / "m.pt")
    assert merged["state_dict"]["w"].tolist() == [1.0] * 3
    assert merged["state_dict_ema"]["w"].tolist() == [5.0] * 3
    assert merged["epoch"] == 3


def test_shared_and_circular_mappings_end() -> None:
    inner: dict[str, object] = {}
    for _ in range(60):  # every path of five keys would be 5 ** 60
        inner = dict.fromkeys(("state_dict", "model", "model_state_dict", "module", "app"), inner)
    with refused(CheckpointError):
        open_checkpoint(inner)
    inner = {}
    inner["model"] = inner
    with refused(CheckpointError):
        open_checkpoint(inner)

"""Whatever is wrong ends in one sentence that names it, code 2, and a folder as it was."""

import json
import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rst import ResidualSparseTrainer
from tests.rst.cli.conftest import files, is_one_sentence, save_sharded, tune, weights


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_the_installed_command_refuses_a_wrong_base_in_one_sentence(installed, rst, tmp_path, delta):
    torch.save(weights(torch.float32, seed=5), tmp_path / "other.pt")
    before = files(tmp_path)
    ran = installed("merge", "other.pt", delta.name)
    assert is_one_sentence(ran)
    assert "other.pt: stem.weight: not the tensor the delta was made from" in ran.err
    assert files(tmp_path) == before


@pytest.mark.parametrize("command", [("merge",), ("merge", "--dry-run"), ("merge", "-o", "out.safetensors")], ids=str)
def test_a_wrong_base(rst, tmp_path, delta, command):
    torch.save(weights(torch.float32, seed=5), tmp_path / "other.pt")
    before = files(tmp_path)
    ran = rst(*command, "other.pt", delta.name)
    assert is_one_sentence(ran)
    assert re.search(r"other\.pt: stem\.\w+: not the tensor the delta was made from", ran.err)
    assert files(tmp_path) == before


def test_a_base_of_another_shape_or_without_the_parameter(rst, tmp_path, delta, pair):
    base, _ = pair
    torch.save({**base, "stem.bias": torch.zeros(8)}, tmp_path / "wider.pt")
    torch.save({name: tensor for name, tensor in base.items() if name != "stem.bias"}, tmp_path / "fewer.pt")
    before = files(tmp_path)
    wider, fewer = rst("merge", "wider.pt", delta.name), rst("merge", "fewer.pt", delta.name)
    assert is_one_sentence(wider)
    assert is_one_sentence(fewer)
    assert "wider.pt: stem.bias: the base has torch.float32 (8,), but the delta is for torch.float32 (7,)" in wider.err
    assert "fewer.pt: stem.bias: " in fewer.err
    assert files(tmp_path) == before


@pytest.mark.parametrize("cut", [0, 1, 7, 100, -1])
def test_a_truncated_delta(rst, tmp_path, delta, cut):
    delta.write_bytes(delta.read_bytes()[:cut])
    before = files(tmp_path)
    for words in (("merge", "base.pt", delta.name), ("inspect", delta.name), ("verify", delta.name)):
        ran = rst(*words)
        assert is_one_sentence(ran)
        assert delta.name in ran.err
    assert files(tmp_path) == before


@pytest.mark.parametrize("place", ["header", "payload"])
def test_a_flipped_byte_in_the_delta(rst, tmp_path, delta, place):
    data = delta.read_bytes()
    flip(delta, data.index(b"fingerprint") if place == "header" else len(data) - 3)
    before = files(tmp_path)
    for words in (("merge", "base.pt", delta.name), ("inspect", delta.name), ("verify", delta.name)):
        ran = rst(*words)
        assert is_one_sentence(ran)
        assert delta.name in ran.err
    assert files(tmp_path) == before


@pytest.mark.parametrize("name", ["stem.weight", "scale"])
@pytest.mark.parametrize("options", [(), ("--threshold", "1e-6"), ("--modules-to-save", "stem"), ("--dry-run",)])
def test_a_nan_in_the_tuned_weights(rst, tmp_path, pair, name, options):
    _, tuned = pair
    tuned[name].view(-1)[-1] = torch.nan
    torch.save(tuned, tmp_path / "tuned.pt")
    before = files(tmp_path)
    ran = rst("export", "tuned.pt", "--base", "base.pt", *options)
    assert is_one_sentence(ran)
    assert f"tuned.pt: {name}: 1 of {tuned[name].numel()} weights are NaN" in ran.err
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    "words",
    [
        ("export", "gone.pt", "--base", "base.pt"),
        ("export", "tuned.pt", "--base", "gone.pt"),
        ("merge", "gone.pt", "tuned.delta.safetensors"),
        ("merge", "base.pt", "gone.pt"),
        ("inspect", "gone.pt"),
        ("verify", "gone.pt"),
        ("verify", "tuned.delta.safetensors", "--base", "gone.pt"),
    ],
    ids=" ".join,
)
def test_a_missing_file(rst, tmp_path, delta, words):
    before = files(tmp_path)
    ran = rst(*words)
    assert is_one_sentence(ran)
    assert "gone.pt: no such file" in ran.err
    assert files(tmp_path) == before


def test_a_checkpoint_without_a_record_asks_for_the_base(rst, pair):
    ran = rst("export", "tuned.pt")
    assert is_one_sentence(ran)
    assert "tuned.pt: the checkpoint contains no base" in ran.err
    assert "--base" in ran.err


@pytest.mark.parametrize("damage", [{"base": None}, {"threshold": "high"}, {"identity": 3}], ids=str)
def test_a_malformed_record(rst, tmp_path, damage):
    model = torch.nn.Linear(3, 2)
    record = ResidualSparseTrainer(model).state_dict() | damage
    torch.save({"state_dict": model.state_dict(), "rst": record}, tmp_path / "model.ckpt")
    ran = rst("export", "model.ckpt")
    assert is_one_sentence(ran)
    assert "model.ckpt: the trainer's state is malformed" in ran.err


def test_settings_that_the_record_has_already(rst, pair):
    ran = rst("export", "tuned.pt", "--exclude", "stem")
    assert is_one_sentence(ran)
    assert "need --base" in ran.err


@pytest.mark.parametrize("threshold", ["-1", "nan", "inf"])
def test_a_threshold_that_is_none(rst, pair, threshold):
    ran = rst("export", "tuned.pt", "--base", "base.pt", "--threshold", threshold)
    assert is_one_sentence(ran)
    assert "must be finite and at least 0" in ran.err


@pytest.mark.parametrize(
    "content",
    [b"", b"no checkpoint\n", b"PK\x03\x04" + bytes(40), pickle.dumps([1, 2]), pickle.dumps({"a": 1})],
    ids=["empty", "text", "zip", "list", "no tensors"],
)
def test_an_unreadable_pickle(rst, tmp_path, delta, content):
    (tmp_path / "base.pt").write_bytes(content)
    ran = rst("merge", "base.pt", delta.name)
    assert is_one_sentence(ran)
    assert "base.pt: " in ran.err


def test_a_pickled_module_is_not_executed(rst, tmp_path, delta):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "base.pt")
    ran = rst("merge", "base.pt", delta.name)
    assert is_one_sentence(ran)
    assert "base.pt: not read" in ran.err


def test_a_truncated_zip_and_a_truncated_safetensors_base(rst, tmp_path, delta, pair):
    save_file(pair[0], tmp_path / "base.safetensors")
    for name in ("base.pt", "base.safetensors"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        ran = rst("merge", name, delta.name)
        assert is_one_sentence(ran)
        assert f"{name}: not a readable" in ran.err


def test_a_folder_without_weights_and_an_unknown_kind_of_file(rst, tmp_path, delta):
    (tmp_path / "folder").mkdir()
    (tmp_path / "base.txt").write_text("")
    folder, text = rst("merge", "folder", delta.name), rst("merge", "base.txt", delta.name)
    assert is_one_sentence(folder)
    assert is_one_sentence(text)
    assert "folder: the folder has none of model.safetensors" in folder.err
    assert "base.txt: unknown kind of checkpoint" in text.err


def test_damaged_indexes_of_shards(rst, tmp_path, delta, pair):
    index = save_sharded(pair[0], tmp_path)
    weight_map = json.loads(index.read_text())["weight_map"]
    contents = {
        "not a shard index": "{",
        "is not a plain file name": json.dumps({"weight_map": {**weight_map, "a": "../secret.safetensors"}}),
        "no such file": json.dumps({"weight_map": {**weight_map, "a": "gone.safetensors"}}),
        "cannot read a": json.dumps({"weight_map": {**weight_map, "a": "model-1-of-2.safetensors"}}),
    }
    for complaint, content in contents.items():
        index.write_text(content)
        ran = rst("merge", index.name, delta.name)
        assert is_one_sentence(ran)
        assert complaint in ran.err


def test_a_safetensors_file_that_is_no_delta(rst, tmp_path, pair):
    save_file(pair[0], tmp_path / "base.safetensors")
    for words in (("merge", "base.pt"), ("inspect",), ("verify",)):
        ran = rst(*words, "base.safetensors")
        assert is_one_sentence(ran)
        assert "base.safetensors: not an RST delta" in ran.err


def test_a_pickle_cannot_be_written_from_another_kind_of_base(rst, tmp_path, delta, pair):
    save_file(pair[0], tmp_path / "base.safetensors")
    before = files(tmp_path)
    for options in ((), ("--dry-run",)):
        ran = rst("merge", "base.safetensors", delta.name, "-o", "out.pt", *options)
        assert is_one_sentence(ran)
        assert "out.pt" in ran.err
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    "words",
    [("merge", "base.pt"), ("merge", "--nonsense"), ("nonsense",), ("export", "tuned.pt", "--threshold", "high")],
    ids=" ".join,
)
def test_misuse_points_to_the_help(rst, pair, words):
    ran = rst(*words)
    assert is_one_sentence(ran)
    assert "--help)" in ran.err


def test_an_error_as_json(rst, tmp_path, pair):
    for words, kind in (
        (("merge", "base.pt", "gone"), "CheckpointError"),
        (("inspect", "gone"), "CheckpointError"),
        (("verify", "gone"), "CheckpointError"),
        (("export", "tuned.pt", "--base", "base.pt", "-o", "base.safetensors/d.safetensors"), "OutputError"),
        (("export",), "UsageError"),
    ):
        ran = rst(*words, "--json")
        assert (ran.code, ran.err) == (2, "")
        assert ran.json["error"]["type"] == kind
        assert ran.json["error"]["message"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device", "base.merged.pt")])
def test_what_stops_the_writing_leaves_no_file(rst, tmp_path, delta, monkeypatch, error):
    def fail(_state, file):
        file.write(b"half of it")
        raise error

    monkeypatch.setattr(torch, "save", fail)
    before = files(tmp_path)
    ran = rst("merge", "base.pt", delta.name)
    interrupted = isinstance(error, KeyboardInterrupt)
    assert ran.code == (130 if interrupted else 2)
    reason = "interrupted; no file was left half written" if interrupted else "base.merged.pt: No space left on device"
    assert ran.err.strip() == f"error: {reason}"
    assert files(tmp_path) == before


def test_names_from_a_delta_cannot_steer_the_terminal(rst, tmp_path):
    base = {"\x1b[2Jw": torch.zeros(3)}
    save_file(base, tmp_path / "base.safetensors")
    save_file({"\x1b[2Jw": torch.ones(3)}, tmp_path / "tuned.safetensors")
    assert rst("export", "tuned.safetensors", "--base", "base.safetensors").code == 0
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pt")
    shown, refused = rst("inspect", "tuned.delta.safetensors"), rst("merge", "other.pt", "tuned.delta.safetensors")
    for text in (shown.out, refused.err):
        assert "\x1b" not in text
        assert r"\x1b[2Jw" in text


def test_tuned_weights_that_do_not_fit_the_base(rst, tmp_path, pair):
    base, _ = pair
    tuned = tune(base)
    del tuned["scale"]
    torch.save(tuned, tmp_path / "fewer.pt")
    torch.save({**tuned, "scale": torch.ones(2)}, tmp_path / "other.pt")
    fewer, other = (rst("export", name, "--base", "base.pt") for name in ("fewer.pt", "other.pt"))
    assert is_one_sentence(fewer)
    assert is_one_sentence(other)
    assert "fewer.pt: lacks scale of base.pt" in fewer.err
    assert "other.pt: scale: torch.float32 (2,) does not fit" in other.err
    tau = rst("tau", "base.pt", "other.pt")
    for option in ("--modules-to-save", "--exclude"):
        assert option in other.err
        assert option in tau.err
        words = ("export", "other.pt", "--base", "base.pt", option, "scale", "-o", f"{option}.safetensors")
        assert rst(*words).code == 0
        merged = f"{option}.merged.pt"
        assert rst("merge", "base.pt", f"./{option}.safetensors", "-o", merged).code == 0
        found = torch.load(tmp_path / merged)["scale"]
        assert torch.equal(found, torch.ones(2) if option == "--modules-to-save" else base["scale"])


def test_a_complex_tensor_names_the_option_that_leaves_it(rst, tmp_path):
    for name, value in (("base.pt", 1.0), ("tuned.pt", 2.0)):
        state = {"w": torch.full((3,), value), "c": torch.full((3,), value, dtype=torch.complex64)}
        torch.save(state, tmp_path / name)
    words = ("export", "tuned.pt", "--base", "base.pt")
    refused = rst(*words)
    assert "--exclude" in refused.err
    assert "tuned.pt: c" in refused.err
    assert rst(*words, "--exclude", "c").code == 0


def test_ctrl_c_before_the_command_has_begun(rst, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("rst.cli.app", interrupt)
    ran = rst("doctor")
    assert (ran.code, ran.out) == (130, "")
    assert ran.err == "error: interrupted; no file was left half written\n"

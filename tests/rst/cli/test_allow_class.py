"""Pickles with more than weights in them: what is refused, how it is named, and what allows it."""

import argparse
import functools
import os
import pathlib
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from rst import CheckpointError, open_checkpoint
from tests.refusal import refused

HARMLESS = {
    "argparse.Namespace": argparse.Namespace(lr=0.1, name="x"),
    "pathlib.PosixPath": pathlib.PurePosixPath("a/b"),
    "pathlib.PurePosixPath": pathlib.PurePosixPath("a/b"),
    "numpy.dtype": np.dtype("float32"),
    "numpy._core.multiarray.scalar": np.float32(2.5),
    "numpy.dtypes.Int64DType": np.int64(7),
}


def save(tmp_path, extra):
    for name, value in {"base": 0.0, "tuned": 1.0}.items():
        torch.save({"model": {"w": torch.full((3,), value)}, "extra": extra}, tmp_path / f"{name}.pt")


@pytest.mark.parametrize("name", HARMLESS)
def test_a_harmless_class_is_allowed_by_name_for_one_command(rst, tmp_path, name):
    save(tmp_path, HARMLESS[name])
    words = ("export", "tuned.pt", "--base", "base.pt", "-o", "d.safetensors")
    said = rst(*words, "--json").json["error"]
    assert said["type"] == "CheckpointError"
    assert "--allow-class" in said["message"]
    assert rst(*words, "--allow-class", name).code == 0
    assert rst("verify", "d.safetensors", "--base", "base.pt", "--allow-class", name).code == 0
    assert rst("merge", "base.pt", "d.safetensors", "-o", "m.pt", "--allow-class", name).code == 0
    assert rst("sync", "publish", "chain", "base.pt", "--allow-class", name).code == 0
    merged = torch.load(tmp_path / "m.pt", weights_only=False)
    assert merged["extra"] == HARMLESS[name]
    assert torch.equal(merged["model"]["w"], torch.ones(3))
    assert rst("merge", "base.pt", "d.safetensors", "-o", "n.pt", "--json").json["error"]["type"] == "CheckpointError"


def test_what_a_refusal_names_is_what_allows(rst, tmp_path):
    save(tmp_path, {"path": pathlib.Path("x"), "scalar": np.float64(1.0), "args": argparse.Namespace()})
    words = ["export", "tuned.pt", "--base", "base.pt", "-o", "d.safetensors"]
    for _ in range(3):
        message = rst(*words, "--json").json["error"]["message"]
        words += ["--allow-class", message.partition("--allow-class ")[2].partition(" ")[0]]
    assert rst(*words).code == 0


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "numpy.ndarray", "torch.nn.Linear", "x"])
def test_no_other_class_is_allowed(rst, tmp_path, name):
    save(tmp_path, 1)
    said = rst("export", "tuned.pt", "--base", "base.pt", "--allow-class", name, "--json").json["error"]
    assert said["type"] == "ConfigError"
    assert name in said["message"]
    assert "argparse.Namespace" in said["message"]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("content", "named", "way_out"),
    [
        (functools.partial(int, 3), "functools.partial", "add_safe_globals"),
        (slice(1), "slice", "add_safe_globals"),
        (argparse.Namespace(), "argparse.Namespace", "--allow-class"),
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear", "state_dict()"),
    ],
)
def test_a_refusal_names_the_class_and_a_way_out(tmp_path, content, named, way_out, zipped):
    torch.save({"model": {"w": torch.ones(2)}, "x": content}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    with refused(CheckpointError, named, way_out, file="a.pt") as caught:
        open_checkpoint(tmp_path / "a.pt")
    assert "\x1b" not in str(caught.value)
    assert "two options" not in str(caught.value)


class Command:
    def __reduce__(self):
        return os.system, ("true",)


def test_what_runs_commands_is_not_offered_as_something_to_allow(tmp_path):
    torch.save({"w": torch.ones(2), "x": Command()}, tmp_path / "a.pt")
    with refused(CheckpointError, ".system", file="a.pt") as caught:
        open_checkpoint(tmp_path / "a.pt")
    assert "add_safe_globals" not in str(caught.value)
    assert "--allow-class" not in str(caught.value)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_torch_did_not_write(tmp_path, protocol):
    (tmp_path / "a.pt").write_bytes(pickle.dumps({"w": OrderedDict(a=1)}, protocol))
    with refused(CheckpointError, file="a.pt") as caught:
        open_checkpoint(tmp_path / "a.pt")
    assert "two options" not in str(caught.value)
    assert "weights_only` set to `False`" not in str(caught.value)

"""Export, then merge: the tuned checkpoint again, every byte of every tensor, whatever it came in."""

from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import save_file

from rst import ResidualSparseTrainer, RSTConfig
from rst.cli.export import Encoding
from rst.delta import sparse_delta
from tests.conftest import SHARED_DATA
from tests.rst.cli.conftest import DTYPES, read, same_bytes, save_sharded, tune, weights

pytestmark = pytest.mark.slow

RESNETS = ("resnet20-12fca82f.th", "resnet56-4bfd9763.th")


def prefixed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


def test_the_installed_command_restores_all_four_dtypes(installed, tmp_path):
    base = {f"{dtype}.{name}": tensor for dtype in DTYPES for name, tensor in weights(dtype).items()}
    tuned = {f"{dtype}.{name}": tensor for dtype in DTYPES for name, tensor in tune(weights(dtype)).items()}
    torch.save(base, tmp_path / "base.pt")
    torch.save(tuned, tmp_path / "tuned.pt")
    exported = installed("export", "--base", "base.pt", "tuned.pt")
    assert (exported.code, exported.err.count("\n")) == (0, 1), "one warning: nearly everything changed"
    merged = installed("merge", "base.pt", "tuned.delta.safetensors")
    assert (merged.code, merged.err) == (0, "")
    assert "wrote base.merged.pt" in merged.out
    assert not same_bytes(base, tuned)
    assert same_bytes(read(tmp_path / "base.merged.pt"), tuned)


def test_a_trainers_checkpoint_needs_no_base_beside_it(rst, tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2))
    torch.save(model.state_dict(), tmp_path / "base.pt")
    trainer = ResidualSparseTrainer(model, RSTConfig(threshold=1e-6, modules_to_save=["2"]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer.attach(optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(16, 6)).square().sum().backward()
        optimizer.step()
    torch.save({"state_dict": model.state_dict(), "rst": trainer.state_dict()}, tmp_path / "model.ckpt")
    exported = rst("export", "--threshold", "1e-6", "model.ckpt")
    assert (exported.code, exported.err.count("\n")) == (0, 1), "one warning: nearly everything changed"
    assert rst("merge", "base.pt", "model.delta.safetensors").code == 0
    assert same_bytes(read(tmp_path / "base.merged.pt"), dict(model.state_dict()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_plain_files_of_each_dtype(rst, tmp_path, dtype, suffix):
    base = weights(dtype)
    tuned = tune(base)
    save = save_file if suffix == ".safetensors" else torch.save
    save(base, tmp_path / f"base{suffix}")
    save(tuned, tmp_path / f"tuned{suffix}")
    assert rst("export", f"tuned{suffix}", "--base", f"base{suffix}").code == 0
    assert rst("merge", f"base{suffix}", "tuned.delta.safetensors").code == 0
    assert same_bytes(read(tmp_path / f"base.merged{suffix}"), tuned)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_nested_and_prefixed_checkpoints_keep_their_structure(rst, tmp_path, prefix):
    base = weights(torch.float32)
    tuned = tune(base)
    torch.save({"state_dict": prefixed(base, prefix), "epoch": 7}, tmp_path / "base.ckpt")
    torch.save(tuned, tmp_path / "tuned.pth")
    assert rst("export", "tuned.pth", "--base", "base.ckpt").code == 0
    assert rst("merge", "base.ckpt", "tuned.delta.safetensors").code == 0
    merged = torch.load(tmp_path / "base.merged.ckpt", weights_only=True)
    assert merged["epoch"] == 7
    assert same_bytes(merged["state_dict"], prefixed(tuned, prefix))


@pytest.mark.parametrize("kind", ["index", "folder of shards", "folder", "folder of a pickle"])
def test_a_model_folder_becomes_a_folder_and_shards_alone_one_file(rst, tmp_path, kind):
    base = weights(torch.bfloat16)
    tuned = tune(base)
    folder = tmp_path / "base.v2"
    folder.mkdir()
    source, merged_name = folder, Path("base.v2.merged")
    if kind == "index":
        source, merged_name = save_sharded(base, folder), Path("base.v2/model.merged.safetensors")
    elif kind == "folder of shards":
        save_sharded(base, folder)
    elif kind == "folder":
        save_file(base, folder / "model.safetensors")
    else:
        torch.save(base, folder / "pytorch_model.bin")
    save_file(tuned, tmp_path / "tuned.safetensors")
    assert rst("export", "tuned.safetensors", "--base", source).code == 0
    merged = rst("merge", source.relative_to(tmp_path), "tuned.delta.safetensors")
    assert f"wrote {merged_name} (" in merged.out
    written = tmp_path / merged_name
    assert same_bytes(read(written / "model.safetensors" if written.is_dir() else written), tuned)


@pytest.mark.parametrize("encoding", Encoding)
def test_every_encoding_of_the_library(rst, tmp_path, pair, encoding):
    exported = rst("export", "tuned.pt", "--base", "base.pt", "--encoding", encoding.value, "--json").json
    assert exported["encoding"] == encoding.value
    assert f"encoding {encoding.value}," in rst("inspect", "tuned.delta.safetensors").out
    assert rst("verify", "tuned.delta.safetensors", "--base", "base.pt").code == 0
    assert rst("merge", "base.pt", "tuned.delta.safetensors").code == 0
    assert same_bytes(read(tmp_path / "base.merged.pt"), pair[1])
    assert {choice.value for choice in Encoding} == set(get_args(sparse_delta.Encoding))


def test_a_threshold_drops_what_barely_moved(rst, tmp_path):
    base = {"w": torch.tensor([1.0, 2.0, 3.0])}
    torch.save(base, tmp_path / "base.pt")
    torch.save({"w": torch.tensor([1.5, 2.0 + 1e-6, 3.0])}, tmp_path / "tuned.pt")
    assert rst("export", "--threshold", "1e-3", "tuned.pt", "--base", "base.pt", "--json").json["changed"] == 1
    assert rst("merge", "base.pt", "tuned.delta.safetensors").code == 0
    assert same_bytes(read(tmp_path / "base.merged.pt"), {"w": torch.tensor([1.5, 2.0, 3.0])})


def test_modules_are_stored_whole_or_left_out_as_asked(rst, tmp_path, pair):
    base, tuned = pair
    ran = rst(
        "export", "tuned.pt", "--base", "base.pt", "--modules-to-save", "stem", "--exclude", "scale",
        "--exclude", "norm", "-o", "d.safetensors", "--json",
    )  # fmt: skip
    assert (ran.json["stored_whole"], ran.json["dsp"]) == (2, 42)
    assert rst("merge", "base.pt", "d.safetensors", "-o", "merged.pt").code == 0
    stem = {name: tensor for name, tensor in tuned.items() if name.startswith("stem.")}
    assert same_bytes(read(tmp_path / "merged.pt"), {**base, **stem})


def test_weights_tied_in_the_base_and_untied_by_tuning(rst, tmp_path):
    shared = torch.randn(4, 3)
    torch.save({"embedding": shared, "head": shared}, tmp_path / "base.pt")
    tuned = {"embedding": shared.clone(), "head": shared + 1}
    torch.save(tuned, tmp_path / "tuned.pt")
    assert rst("export", "tuned.pt", "--base", "base.pt").code == 0
    assert rst("merge", "base.pt", "tuned.delta.safetensors").code == 0
    assert same_bytes(read(tmp_path / "base.merged.pt"), tuned)


def test_merging_twice_writes_the_same_file(rst, tmp_path, pair):
    assert rst("export", "tuned.pt", "--base", "base.pt").code == 0
    for output in ("first.pt", "second.pt"):
        assert rst("merge", "base.pt", "tuned.delta.safetensors", "-o", output).code == 0
    assert (tmp_path / "first.pt").read_bytes() == (tmp_path / "second.pt").read_bytes()


@pytest.mark.parametrize("name", RESNETS)
def test_a_pretrained_cifar_resnet(rst, tmp_path, name):
    source = SHARED_DATA / "cifar10_resnet" / name
    if not source.is_file():
        pytest.skip(f"the pretrained {name} is not at hand")
    checkpoint = torch.load(source, weights_only=True, map_location="cpu")
    draw = torch.Generator().manual_seed(0)
    tuned = {key: tensor.clone() for key, tensor in checkpoint["state_dict"].items()}
    for tensor in tuned.values():
        if tensor.is_floating_point():
            tensor += (torch.rand(tensor.shape, generator=draw) < 0.01) * 1e-3
    torch.save({**checkpoint, "state_dict": tuned}, tmp_path / "tuned.th")
    exported = rst("export", "--threshold", "1e-6", "tuned.th", "--base", source, "--json").json
    assert 0.005 < exported["density"] < 0.015
    assert exported["bytes"] < source.stat().st_size / 10
    assert rst("merge", source, "tuned.delta.safetensors", "-o", "merged.th").code == 0
    merged = torch.load(tmp_path / "merged.th", weights_only=True)
    assert same_bytes(merged["state_dict"], tuned)
    assert merged["best_prec1"] == checkpoint["best_prec1"]

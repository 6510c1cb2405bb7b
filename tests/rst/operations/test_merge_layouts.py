"""Folders as diffusers and transformers write them, variants and pipelines included, come out under the same names."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from rst import CheckpointError, ParameterMismatchError, RSTWarning, SparseDelta, export, merge, open_checkpoint
from tests.refusal import refused

METADATA = {"format": "pt", "modelspec.title": "mine"}


def weights(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {"conv.weight": torch.randn(6, 4), "conv.bias": torch.randn(6)}


def tune(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone().index_fill_(0, torch.tensor([1]), 9.0) for name, tensor in state.items()}


def save_model(folder: Path, state: dict[str, Tensor], stem: str, variant: str | None, shards: int) -> None:
    """As `save_pretrained` of diffusers and transformers does."""
    folder.mkdir(parents=True)
    start = f"{stem}.{variant}" if variant else stem
    (folder / "config.json").write_text(json.dumps({"_class_name": stem}))
    if shards == 1:
        save_file(state, folder / f"{start}.safetensors", METADATA)
        return
    files = {name: f"{start}-{number:05}-of-00002.safetensors" for number, name in enumerate(state, 1)}
    for name, file in files.items():
        save_file({name: state[name]}, folder / file, METADATA)
    index = f"{stem}.safetensors.index.{variant}.json" if variant else f"{stem}.safetensors.index.json"
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": files}))


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("stem", ["model", "diffusion_pytorch_model"])
@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("shards", [1, 2])
def test_a_folder_comes_out_as_it_went_in(tmp_path: Path, stem: str, variant: str | None, shards: int) -> None:
    base, tuned = weights(0), tune(weights(0))
    save_model(tmp_path / "base", base, stem, variant, shards)
    save_model(tmp_path / "tuned", tuned, stem, variant, shards)
    delta = export(tmp_path / "base", tmp_path / "tuned")
    merge(tmp_path / "base", delta, tmp_path / "out", max_shard_size=100 if shards == 2 else None)
    assert tree(tmp_path / "out") == tree(tmp_path / "tuned")
    for file in (tmp_path / "out").glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            assert opened.metadata() == METADATA
    opened = open_checkpoint(tmp_path / "out")
    assert same({name: opened[name] for name in opened}, tuned)


def test_plain_weights_go_before_a_variant_and_several_variants_are_a_question(tmp_path: Path) -> None:
    folder = tmp_path / "unet"
    save_model(folder, weights(0), "diffusion_pytorch_model", None, 1)
    save_file(weights(1), folder / "diffusion_pytorch_model.fp16.safetensors")
    save_file(weights(2), folder / "diffusion_pytorch_model.non_ema.safetensors")
    assert torch.equal(open_checkpoint(folder)["conv.bias"], weights(0)["conv.bias"])
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    with refused(CheckpointError, "fp16", "non_ema", file="unet"):
        open_checkpoint(folder)
    named = open_checkpoint(folder / "diffusion_pytorch_model.non_ema.safetensors")
    assert torch.equal(named["conv.bias"], weights(2)["conv.bias"])
    (folder / "diffusion_pytorch_model.non_ema.safetensors").unlink()
    save_file(weights(2), folder / "diffusion_pytorch_model.delta.safetensors")  # the command line's own, beside it
    assert torch.equal(open_checkpoint(folder)["conv.bias"], weights(1)["conv.bias"])


def save_pipeline(folder: Path, unet: dict[str, Tensor], encoder: dict[str, Tensor]) -> None:
    save_model(folder / "unet", unet, "diffusion_pytorch_model", "fp16", 2)
    save_model(folder / "text_encoder", encoder, "model", "fp16", 1)
    for name in ("tokenizer/merges.txt", "scheduler/scheduler_config.json", "model_index.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f'"{name}"')
    (folder / "photo.png").write_text("stays")


def test_a_pipeline_of_models_in_their_folders(tmp_path: Path) -> None:
    save_pipeline(tmp_path / "base", weights(0), weights(1))
    save_pipeline(tmp_path / "tuned", tune(weights(0)), tune(weights(1)))
    delta = export(tmp_path / "base", tmp_path / "tuned")
    assert set(delta) == {f"{part}.{name}" for part in ("unet", "text_encoder") for name in weights(0)}
    delta.save(tmp_path / "d.safetensors")
    out = merge(tmp_path / "base", tmp_path / "d.safetensors", tmp_path / "out", max_shard_size=100)
    assert {file for file in tree(out) if "text_encoder" not in file} == {
        file for file in tree(tmp_path / "tuned") if "text_encoder" not in file and "photo" not in file
    }
    for part, seed in {"unet": 0, "text_encoder": 1}.items():
        opened = open_checkpoint(out / part)
        assert same({name: opened[name] for name in opened}, tune(weights(seed)))
    assert (out / "tokenizer/merges.txt").read_text() == '"tokenizer/merges.txt"'
    with refused(CheckpointError, file="one.safetensors"):
        merge(tmp_path / "base", delta, tmp_path / "one.safetensors")
    stray = SparseDelta({}, dense={"vae.new": torch.ones(2)})
    with refused(ParameterMismatchError, "text_encoder", "unet", parameter="vae.new"):
        merge(tmp_path / "base", stray, tmp_path / "stray")
    assert not list(tmp_path.glob("stray*"))


def test_an_interrupted_pipeline_goes_on_where_it_was(tmp_path: Path) -> None:
    save_pipeline(tmp_path / "base", weights(0), weights(1))
    delta = export(tmp_path / "base", tmp_path / "base")
    seen: list[int] = []

    def stop(done: int, _: int) -> None:
        seen.append(done)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(tmp_path / "base", delta, tmp_path / "out", max_shard_size=100, on_progress=stop)
    (finished,) = (tmp_path / "out.partial" / "text_encoder").glob("*-00001-*")
    written = finished.stat().st_ino
    with pytest.warns(RSTWarning, match=r"out\.partial .* [1-9]\d* of \d+"):
        merge(tmp_path / "base", delta, tmp_path / "out", max_shard_size=100)
    assert (tmp_path / "out" / "text_encoder" / finished.name).stat().st_ino == written
    assert not (tmp_path / "out.partial").exists()


def test_a_journal_cannot_point_out_of_the_folder(tmp_path: Path) -> None:
    save_pipeline(tmp_path / "base", weights(0), weights(1))
    (tmp_path / "precious").write_text("mine")
    partial = tmp_path / "out.partial"
    partial.mkdir()
    names = ["../precious", str(tmp_path / "precious"), "unet/../../precious"]
    (partial / "rst-journal.jsonl").write_text(json.dumps({"job": "another", "files": names}) + "\n")
    with pytest.warns(RSTWarning, match=r"out\.partial "):
        merge(tmp_path / "base", export(tmp_path / "base", tmp_path / "base"), tmp_path / "out")
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_single_file_keeps_what_its_header_says(tmp_path: Path) -> None:
    save_file(weights(0), tmp_path / "base.safetensors", {"modelspec.title": "mine"})
    merge(tmp_path / "base.safetensors", export(weights(0), tune(weights(0))), tmp_path / "out.safetensors")
    with safe_open(tmp_path / "out.safetensors", "pt") as opened:
        assert opened.metadata() == METADATA
    assert same(load_file(tmp_path / "out.safetensors"), tune(weights(0)))


def test_a_version_in_a_folders_name_is_no_suffix(tmp_path: Path) -> None:
    save_model(tmp_path / "base-3.1", weights(0), "model", None, 1)
    delta = export(weights(0), tune(weights(0)))
    out = merge(tmp_path / "base-3.1", delta, tmp_path / "tuned-3.1")
    assert same(load_file(out / "model.safetensors"), tune(weights(0)))
    with refused(CheckpointError, file="tuned.gguf"):
        merge(tmp_path / "base-3.1", delta, tmp_path / "tuned.gguf")

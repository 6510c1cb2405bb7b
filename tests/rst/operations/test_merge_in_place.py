"""Merging into the base's own files: the tuned weights, the way back, and a killed merge that is completed."""

import errno
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from rst import (
    CheckpointError,
    NotCarriedError,
    ParameterDelta,
    SparseDelta,
    WrongBaseError,
    export,
    merge,
    merge_in_place,
)
from rst.files.locks import alone_in
from rst.operations import merge_in_place as module
from tests.refusal import refused
from tests.rst.operations.test_merge import DTYPES, assert_equal, tuned, weights

ONLY_CHANGES = ("embed.weight", "norm.weight", "norm.running_mean", "norm.num_batches_tracked", "scale")


def changed(base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tuned weights without the new tensor, for which a file has no room."""
    return {name: tensor for name, tensor in tuned(dict(base)).items() if name in ONLY_CHANGES}


def case(
    folder: Path, dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[Path, SparseDelta, dict[str, Tensor]]:
    folder.mkdir(exist_ok=True)
    base = weights(dtype)
    save_file(base, folder / "model.safetensors", {"made": "here"})
    return folder / "model.safetensors", export(base, changed(base), **options), base


def inside(file: Path) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("op", ["add", "replace", "step"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_there_and_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype, op: Any) -> None:
    file, delta, base = case(tmp_path, dtype, op=op)
    before = file.read_bytes()
    count = merge_in_place(file, delta, tmp_path / "undo.safetensors")
    assert_equal(inside(file), changed(base))
    assert len(file.read_bytes()) == len(before)
    assert count == SparseDelta.load(tmp_path / "undo.safetensors").nnz > 0
    assert_equal(dict(merge(inside(file), SparseDelta.load(tmp_path / "undo.safetensors"))), base)
    merge_in_place(file, tmp_path / "undo.safetensors", tmp_path / "redo.safetensors")
    assert file.read_bytes() == before
    merge_in_place(file, tmp_path / "redo.safetensors", tmp_path / "undo again.safetensors")
    assert_equal(inside(file), changed(base))


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32), share=st.floats(0, 1), knows_its_base=st.booleans())
def test_a_merge_that_was_killed_anywhere_is_completed(
    tmp_path_factory: pytest.TempPathFactory, seed: int, share: float, knows_its_base: bool
) -> None:
    folder, generator = tmp_path_factory.mktemp("killed"), Random(seed)
    file, delta, _ = case(folder)
    if not knows_its_base:
        delta = replace(delta, parameters={name: replace(one, base=None) for name, one in delta.items()})
    before = file.read_bytes()
    merge_in_place(file, delta, folder / "undo.safetensors")
    after = file.read_bytes()
    file.write_bytes(bytes(new if generator.random() < share else old for new, old in zip(after, before, strict=True)))
    merge_in_place(file, delta, folder / "undo.safetensors")
    assert file.read_bytes() == after


def test_a_folder_of_shards(tmp_path: Path) -> None:
    base, wanted = weights(), changed(weights())
    save_file(wanted, tmp_path / "whole.safetensors")
    back = export(wanted, base)
    merge(tmp_path / "whole.safetensors", back, tmp_path / "model", max_shard_size="1KB")
    shards = sorted((tmp_path / "model").glob("*.safetensors"))
    assert len(shards) > 1
    merge_in_place(tmp_path / "model", export(base, wanted), tmp_path / "undo.safetensors")
    assert_equal({name: tensor for shard in shards for name, tensor in inside(shard).items()}, wanted)


def test_a_tensor_that_the_index_does_not_name_is_left_alone(tmp_path: Path) -> None:
    """A shard may have a leftover under the name of another shard's tensor, of another shape."""
    x, y = torch.randn(40, 10), torch.randn(40, 10)
    save_file({"x": x}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"y": y, "x": torch.zeros(5)}, tmp_path / "model-00002-of-00002.safetensors")
    places = {"x": "model-00001-of-00002.safetensors", "y": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    merge_in_place(tmp_path, export({"x": x}, {"x": x + 1}), tmp_path / "undo.safetensors")
    assert torch.equal(inside(tmp_path / places["x"])["x"], x + 1)
    second = inside(tmp_path / places["y"])
    assert torch.equal(second["y"], y)
    assert torch.equal(second["x"], torch.zeros(5))


def test_names_that_differ_by_prefix_and_spelling_are_completed_too(tmp_path: Path) -> None:
    file, undo = tmp_path / "model.safetensors", tmp_path / "undo.safetensors"
    base = {"l.weight": torch.randn(4, 4), "LayerNorm.gamma": torch.ones(4), "z": torch.ones(4)}
    save_file(base, file)
    new = {f"module.{name}": tensor + 1 for name, tensor in base.items() if name != "z"}
    new["module.LayerNorm.weight"] = new.pop("module.LayerNorm.gamma")
    old = {"module.l.weight": base["l.weight"], "module.LayerNorm.weight": base["LayerNorm.gamma"]}
    delta = SparseDelta({name: ParameterDelta.between(name, old[name], new[name]) for name in old})
    merge_in_place(file, delta, undo)
    after = file.read_bytes()
    merge_in_place(file, delta, undo)
    assert file.read_bytes() == after
    assert torch.equal(inside(file)["LayerNorm.gamma"], torch.full((4,), 2.0))


def locked(file: Path, delta: SparseDelta, undo: Path) -> None:
    with alone_in(file, file.with_name(f"{file.name}.lock")):
        merge_in_place(file, delta, undo)


def undo_is_a_link(file: Path, delta: SparseDelta, undo: Path) -> None:
    undo.symlink_to(file.with_name("elsewhere.safetensors"))
    merge_in_place(file, delta, undo)


def new_tensor(file: Path, delta: SparseDelta, undo: Path) -> None:
    merge_in_place(file, replace(delta, dense={"head.weight": torch.ones(3)}), undo)


def other_base(file: Path, delta: SparseDelta, undo: Path) -> None:
    save_file(weights(seed=1), file)
    merge_in_place(file, delta, undo)


def linked(file: Path, delta: SparseDelta, undo: Path) -> None:
    os.link(file, file.with_name("twin.safetensors"))
    merge_in_place(file, delta, undo)


def pointed_to(file: Path, delta: SparseDelta, undo: Path) -> None:
    file.rename(file.with_name("blob"))
    file.symlink_to(file.with_name("blob"))
    merge_in_place(file, delta, undo)


def pickled(file: Path, delta: SparseDelta, undo: Path) -> None:
    torch.save(load_file(file), file.with_suffix(".pt"))
    merge_in_place(file.with_suffix(".pt"), delta, undo)


def undo_of_another(file: Path, delta: SparseDelta, undo: Path) -> None:
    other = weights()
    other["scale"] = other["scale"] + 7
    another = file.with_name("another.safetensors")
    save_file(other, another)
    merge_in_place(another, export(other, weights()), undo)
    merge_in_place(file, delta, undo)


def undo_is_the_delta(file: Path, delta: SparseDelta, undo: Path) -> None:
    delta.save(undo)
    merge_in_place(file, undo, undo)


@pytest.mark.parametrize(
    ("attempt", "kind"),
    [
        (new_tensor, NotCarriedError),
        (other_base, WrongBaseError),
        (linked, CheckpointError),
        (pointed_to, CheckpointError),
        (pickled, CheckpointError),
        (undo_of_another, CheckpointError),
        (undo_is_the_delta, CheckpointError),
        (undo_is_a_link, CheckpointError),
        (locked, CheckpointError),
    ],
)
def test_what_is_refused_changes_nothing(
    tmp_path: Path, attempt: Callable[[Path, SparseDelta, Path], None], kind: Any
) -> None:
    file, delta, _ = case(tmp_path)
    with pytest.raises(kind):
        attempt(file, delta, tmp_path / "undo.safetensors")
    assert_equal(inside(file), weights(seed=1 if attempt is other_base else 0))


def test_the_undo_file_is_whole_before_a_weight_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, delta, base = case(tmp_path)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_elements", killed)
    with pytest.raises(KeyboardInterrupt):
        merge_in_place(file, delta, tmp_path / "undo.safetensors")
    assert_equal(inside(file), base)
    assert SparseDelta.load(tmp_path / "undo.safetensors").nnz


def test_a_disk_that_takes_only_part_of_a_write_is_an_error_and_the_merge_is_completed(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    base = {"w": torch.zeros(100_000)}
    after = {"w": base["w"].clone()}
    after["w"][::1000] = 1.0
    file, undo = tmp_path / "model.safetensors", tmp_path / "undo.safetensors"
    save_file(base, file)
    delta = export(base, after)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))  # room for the undo file, and for half of the weights
    try:
        with pytest.raises(OSError) as caught:  # noqa: PT011  (its number is looked at)
            merge_in_place(file, delta, undo)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert merge_in_place(file, delta, undo) == 100
    assert_equal(inside(file), after)


def test_without_writing_nothing_is_written(tmp_path: Path) -> None:
    file, delta, base = case(tmp_path)
    assert merge_in_place(file, delta, tmp_path / "undo.safetensors", write=False)
    assert [one.name for one in tmp_path.iterdir()] == ["model.safetensors"]
    assert_equal(inside(file), base)
    with refused(CheckpointError, file="undo.pt"):
        merge_in_place(file, delta, tmp_path / "undo.pt")

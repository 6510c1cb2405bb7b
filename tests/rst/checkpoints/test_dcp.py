"""Folders of torch.distributed.checkpoint as inputs: the weights of one process, whoever saved them."""

import os
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, TensorStorageMetadata

from rst import CheckpointError, SparseDelta, WrongBaseError, export, merge, open_checkpoint
from rst.cli import main
from rst.numerics.exactness import bit_equal
from tests.refusal import refused
from tests.rst.distributed import sharded_models
from tests.rst.distributed.process_group import run
from tests.rst.distributed.sharded_models import RESUMED, Net

STEPS = 2
State = dict[str, Tensor]


@pytest.fixture(scope="module", params=[1, 2])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model, optimiser and trainer, two steps on, saved by FSDP2 in one or two processes."""
    path: Path = tmp_path_factory.mktemp("dcp") / "step-2"
    run(request.param, sharded_models.save_halfway, path, RESUMED, STEPS)
    return path


@pytest.fixture(scope="module")
def plain() -> tuple[SparseDelta, State]:
    delta, weights, _ = sharded_models.plain_steps(RESUMED, torch.float32, STEPS)
    return delta, weights


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def save_here(state: dict[str, Any], path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there is no process group; older torch warns of itself, too
        dcp.save(state, checkpoint_id=path)
    return path


def assert_state(found: Any, wanted: State) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert bit_equal(found[name], tensor), name


def test_the_weights_are_those_of_one_process(folder: Path, plain: tuple[SparseDelta, State]) -> None:
    checkpoint = open_checkpoint(folder)
    assert_state(dict(checkpoint), plain[1])
    for name, tensor in plain[1].items():
        outline = checkpoint.outline(name)
        assert (outline.is_meta, outline.dtype, outline.shape) == (True, tensor.dtype, tensor.shape)


def test_export_with_a_base(folder: Path, plain: tuple[SparseDelta, State]) -> None:
    base = dict(Net().state_dict())
    delta = export(base, folder)
    assert_state(merge(base, delta), plain[1])
    assert export(folder, folder).nnz == 0


def test_export_from_the_record_in_the_folder(folder: Path, plain: tuple[SparseDelta, State], tmp_path: Path) -> None:
    wanted, _ = plain
    assert export(None, folder) == wanted
    assert main(["export", str(folder), "-o", str(tmp_path / "delta.safetensors")]) == 0
    assert SparseDelta.load(tmp_path / "delta.safetensors") == wanted


def test_merge_and_verify_with_a_folder_as_base(
    folder: Path, plain: tuple[SparseDelta, State], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = {name: tensor.clone() for name, tensor in plain[1].items()}
    tuned["up.weight"][2, 3] += 1
    delta = tmp_path / "delta.safetensors"
    export(folder, tuned, output=delta)
    assert main(["merge", str(folder), str(delta), "-o", str(tmp_path / "out.safetensors")]) == 0
    assert_state(load_file(tmp_path / "out.safetensors"), tuned)
    merge(folder, delta, tmp_path / "shards", max_shard_size=200)
    assert_state(dict(open_checkpoint(tmp_path / "shards")), tuned)
    assert main(["verify", str(delta), "--base", str(folder)]) == 0
    other = dict(plain[1]) | {"up.weight": tuned["up.weight"]}
    save_here({"model": other}, tmp_path / "other")
    with refused(WrongBaseError, file="other", parameter="up.weight"):
        merge(tmp_path / "other", delta, tmp_path / "wrong.safetensors")
    capsys.readouterr()
    assert main(["verify", str(delta), "--base", str(tmp_path / "other")]) == 2


@pytest.mark.parametrize("nesting", [(), ("model",), ("state_dict",), ("app", "model")])
def test_every_dtype_and_nesting(tmp_path: Path, nesting: tuple[str, ...]) -> None:
    state: State = {
        "w.half": torch.randn(3, 5).bfloat16(),
        "w.double": torch.randn(4).double(),
        "w.eighth": torch.randn(7).to(torch.float8_e4m3fn),
        "columns": torch.randn(4, 6).t(),
        "flag": torch.tensor([True, False]),
        "count": torch.tensor(3),
        "none": torch.empty(0, 3),
    }
    container: dict[str, Any] = {f"module.{name}": tensor for name, tensor in state.items()}
    for key in reversed(nesting):
        container = {key: container, "epoch": 3}
    found = open_checkpoint(save_here(container, tmp_path / "dcp"))
    assert_state(dict(found), state)


def test_one_tensor_is_read_at_a_time(
    folder: Path, plain: tuple[SparseDelta, State], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    original = torch.load

    def watched(*args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs)
        read.append(found.nbytes if isinstance(found, Tensor) else 0)
        return found

    monkeypatch.setattr(torch, "load", watched)
    checkpoint = open_checkpoint(folder)
    assert sum(read) == 0
    checkpoint["up.weight"]
    assert sum(read) == plain[1]["up.weight"].nbytes
    read.clear()
    export(None, folder, threshold=0.0)
    tensors = [nbytes for nbytes in read if nbytes]
    assert tensors[0] == tensors[1] == plain[1]["scale"].nbytes  # w0 is read beside each, not before all
    wanted = sum(plain[1][name].nbytes for name in plain[1] if "again" not in name)
    assert sum(tensors) < 2.2 * wanted


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


class TestDamaged:
    def refuse(self, copy: Path, *shown: object, file: str | None = ".metadata") -> None:
        with refused(CheckpointError, *shown, file=file):
            dict(open_checkpoint(copy))

    def rewrite(self, copy: Path, change: Callable[[Metadata], object]) -> None:
        metadata = pickle.loads((copy / ".metadata").read_bytes())
        change(metadata)
        (copy / ".metadata").write_bytes(pickle.dumps(metadata))

    def test_code_in_the_metadata_does_not_run(self, copy: Path, tmp_path: Path) -> None:
        def plant(metadata: Metadata) -> None:
            metadata.planner_data = Evil(tmp_path / "owned")

        self.rewrite(copy, plant)
        self.refuse(copy, "posix.mkdir")
        assert not (tmp_path / "owned").exists()

    def test_torchs_classes_stay_as_they_are(self, copy: Path) -> None:
        metadata = pickle.PROTO + b"\x04ctorch.distributed.checkpoint.metadata\nBytesStorageMetadata\n"
        metadata += b"(N}(\x8c\x07altered\x8c\x01xut" + b"b."  # setattr of the class itself
        (copy / ".metadata").write_bytes(metadata)
        self.refuse(copy)
        assert not hasattr(BytesStorageMetadata, "altered")

    @pytest.mark.parametrize("size", [0, 10, 200])
    def test_torn_metadata(self, copy: Path, size: int) -> None:
        (copy / ".metadata").write_bytes((copy / ".metadata").read_bytes()[:size])
        self.refuse(copy)

    def test_a_chunk_is_missing(self, copy: Path) -> None:
        def shorten(metadata: Metadata) -> None:
            entry = metadata.state_dict_metadata["model.up.weight"]
            assert isinstance(entry, TensorStorageMetadata)
            entry.chunks.pop()

        self.rewrite(copy, shorten)
        self.refuse(copy, "model.up.weight", 54)

    def test_a_file_outside_the_folder(self, copy: Path) -> None:
        def lead_away(metadata: Metadata) -> None:
            next(iter(metadata.storage_data.values())).relative_path = "../elsewhere.distcp"

        self.rewrite(copy, lead_away)
        self.refuse(copy, "../elsewhere.distcp")

    def test_a_file_is_missing(self, copy: Path) -> None:
        next(iter(copy.glob("*.distcp"))).unlink()
        self.refuse(copy, ".distcp")

    def test_a_file_is_torn(self, copy: Path) -> None:
        for path in copy.glob("*.distcp"):
            path.write_bytes(path.read_bytes()[:1000])
        self.refuse(copy, 1000)

    def test_another_size_than_the_metadata_say(self, copy: Path) -> None:
        def transpose(metadata: Metadata) -> None:
            entry = metadata.state_dict_metadata["model.up.weight"]
            assert isinstance(entry, TensorStorageMetadata)
            entry.size = torch.Size((6, 9))
            for chunk in entry.chunks:
                chunk.sizes, chunk.offsets = torch.Size(chunk.sizes[::-1]), torch.Size(chunk.offsets[::-1])

        self.rewrite(copy, transpose)
        self.refuse(copy, "up.weight", file=None)

    def test_a_tensor_is_more_than_its_file_holds(self, copy: Path) -> None:
        def swell(metadata: Metadata) -> None:
            entry = metadata.state_dict_metadata["model.scale"]
            assert isinstance(entry, TensorStorageMetadata)
            entry.size = entry.chunks[0].sizes = torch.Size((1 << 40,))

        self.rewrite(copy, swell)
        self.refuse(copy, "model.scale", 4 << 40)

    @pytest.mark.parametrize("path", [("model", "up.weight", "below"), ("model", "up.weight"), (), 3])
    def test_nesting_that_cannot_be(self, copy: Path, path: Any) -> None:
        def nest(metadata: Metadata) -> None:
            metadata.planner_data["model.scale"] = path

        self.rewrite(copy, nest)
        self.refuse(copy, file="copy")

    def test_the_inside_of_a_file_is_damaged(self, copy: Path) -> None:
        for path in copy.glob("*.distcp"):
            path.write_bytes(b"?" * path.stat().st_size)
        self.refuse(copy, "cannot read", file="copy")

    def test_no_metadata(self, copy: Path) -> None:
        (copy / ".metadata").unlink()
        self.refuse(copy, ".metadata", file="copy")

    def test_no_weights(self, tmp_path: Path) -> None:
        self.refuse(save_here({"epoch": 3}, tmp_path / "dcp"), "state_dict", file="dcp")


def test_arbitrary_objects_beside_the_weights_are_not_unpickled(tmp_path: Path) -> None:
    state = dict(nn.Linear(2, 2).state_dict())
    path = save_here(
        {"model": state, "rst": {"format": Evil(tmp_path / "owned"), "version": 1, "base": {"x": 1}}}, tmp_path / "dcp"
    )
    with refused(CheckpointError, "rst.format", file=path):
        open_checkpoint(path)
    assert not (tmp_path / "owned").exists()

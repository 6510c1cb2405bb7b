"""Model folders written in shards, and exports in parts: killed at any point they go on, and end in the same bytes."""

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rst import (
    CheckpointError,
    ConfigError,
    NonFiniteError,
    SparseDelta,
    WrongBaseError,
    export,
    merge,
    open_checkpoint,
)
from rst.cli import main
from rst.numerics.exactness import bit_equal
from rst.operations import resumable_export
from rst.operations.merge import rehearse
from tests.refusal import refused

State = dict[str, Tensor]
COMPANIONS = ["config.json", "modeling.py", "spiece.model", "vocab.txt"]
LIMIT = 300  # bytes a shard: two of the large tensors below
TOUCHES = ((Path, "open"), (Path, "mkdir"), (Path, "unlink"), (Path, "rename"), (Path, "rmdir"), (os, "fsync"))
killing = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


def weights() -> State:
    generator = torch.Generator().manual_seed(0)
    state = {f"layers.{n}.weight": torch.randn(8, 9, generator=generator).bfloat16() for n in range(6)}
    return state | {"norm.weight": torch.ones(3), "norm.num_batches_tracked": torch.tensor(3)}


def tuned() -> State:
    state = {name: tensor.clone() for name, tensor in weights().items()}
    for n in range(6):
        state[f"layers.{n}.weight"][n, 2:5] *= 1.5
    return state | {"norm.weight": torch.full((3,), 2.0), "head.weight": torch.ones(2, 8)}


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    save_file(weights(), tmp_path / "base.safetensors")
    save_file(tuned(), tmp_path / "tuned.safetensors")
    export(weights(), tuned()).save(tmp_path / "delta.safetensors")
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def assert_state(found: Any, wanted: State) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert bit_equal(found[name], tensor), name


def move_base_to_folder(inputs: Path, companions: Sequence[str] = COMPANIONS) -> None:
    """The base as a model folder with settings, a tokenizer, and what is no part of the merged model."""
    base = inputs / "base"
    (base / "runs").mkdir(parents=True)
    (inputs / "base.safetensors").rename(base / "model.safetensors")
    for name in companions:
        (base / name).write_text(f"what {name} says")
    for name in ("README.md", ".hidden.json", "pytorch_model.bin.index.json", "optimizer.pt", "runs/1.json"):
        (base / name).write_text("not copied")


def merge_here(folder: Path, **settings: Any) -> Path:
    base = folder / "base"
    return merge(
        base if base.is_dir() else folder / "base.safetensors",
        folder / "delta.safetensors",
        folder / "out",
        **{"max_shard_size": LIMIT, **settings},
    )


def test_shards_are_what_transformers_reads(inputs: Path) -> None:
    out = merge_here(inputs)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files == [f"model-{n:05}-of-00004.safetensors" for n in range(1, 5)]
    assert {path.name for path in out.iterdir()} == {*files, "model.safetensors.index.json"}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tuned().values())
    for file in files:
        shard = load_file(out / file)
        assert shard.keys() == {name for name, place in index["weight_map"].items() if place == file}
        assert len(shard) == 1 or sum(tensor.nbytes for tensor in shard.values()) <= LIMIT
    assert_state(open_checkpoint(out), tuned())
    assert [path.name for path in inputs.glob("out*")] == ["out"]


def test_what_fits_one_shard_is_one_file(inputs: Path) -> None:
    out = merge_here(inputs, max_shard_size=None)
    assert_state(load_file(out / "model.safetensors"), tuned())
    assert len(list(out.iterdir())) == 1


def test_settings_and_tokenizer_of_a_folder_come_along(inputs: Path) -> None:
    move_base_to_folder(inputs)
    out = merge_here(inputs, max_shard_size=None)
    assert_state(open_checkpoint(out), tuned())
    assert sorted(path.name for path in out.iterdir()) == sorted([*COMPANIONS, "model.safetensors"])
    for name in COMPANIONS:
        assert (out / name).read_bytes() == (inputs / "base" / name).read_bytes()


def test_a_merged_folder_is_loaded_by_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=32, **sizes))
    model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3] *= 2
    model.save_pretrained(tmp_path / "tuned")
    export(tmp_path / "base", tmp_path / "tuned").save(tmp_path / "delta.safetensors")
    merge(tmp_path / "base", tmp_path / "delta.safetensors", tmp_path / "merged", max_shard_size="5KB")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert_state(loaded.state_dict(), model.state_dict())
    assert loaded.generation_config == model.generation_config


@pytest.mark.parametrize(("size", "shards"), [("0.5KB", 3), ("1 KiB", 1), ("1MB", 1), (300, 4)])
def test_sizes(inputs: Path, size: int | str, shards: int) -> None:
    found = len(list(merge_here(inputs, max_shard_size=size).glob("*.safetensors")))
    assert found == shards


@pytest.mark.parametrize("size", ["5 apples", "0", "", "KB", -1, "5IB"])
def test_what_is_no_size(inputs: Path, size: int | str) -> None:
    with refused(ConfigError, repr(size)):
        merge_here(inputs, max_shard_size=size)
    assert not list(inputs.glob("out*"))


def test_with_a_size_a_name_with_a_dot_is_a_folder_too(inputs: Path) -> None:
    seen: list[tuple[int, int]] = []
    out = merge(
        inputs / "base.safetensors",
        inputs / "delta.safetensors",
        inputs / "tuned.v2",
        max_shard_size=LIMIT,
        on_progress=lambda *at: seen.append(at),
    )
    assert_state(open_checkpoint(out), tuned())
    total = sum(tensor.nbytes for tensor in tuned().values())
    assert (len(seen), seen[-1]) == (len(tuned()), (total, total))


def test_a_rehearsal_refuses_what_a_merge_does(inputs: Path) -> None:
    with refused(ConfigError, "1GB", file="out.pt"):
        rehearse(inputs / "base.safetensors", inputs / "delta.safetensors", inputs / "out.pt", max_shard_size="1GB")


def test_a_size_needs_a_folder(inputs: Path) -> None:
    with refused(ConfigError, "1GB", file="out.safetensors"):
        merge(
            inputs / "base.safetensors",
            inputs / "delta.safetensors",
            inputs / "out.safetensors",
            max_shard_size="1GB",
        )


def test_a_folder_with_something_in_it_is_left_alone(inputs: Path) -> None:
    (inputs / "out").mkdir()
    merge_here(inputs)
    before = contents(inputs / "out")
    with refused(CheckpointError, file="out"):
        merge_here(inputs)
    assert contents(inputs / "out") == before


def test_an_error_leaves_nothing(inputs: Path) -> None:
    other = weights()
    other["layers.5.weight"][0, 0] += 1
    save_file(other, inputs / "base.safetensors")
    with refused(WrongBaseError, file="base.safetensors", parameter="layers.5.weight"):
        merge_here(inputs)
    assert not list(inputs.glob("out*"))


def in_a_child(work: Callable[[], object]) -> bool:
    """Whether `work` was killed in a forked process."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(99)
    status = os.waitpid(child, 0)[1]
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert killed or os.waitstatus_to_exitcode(status) == 0
    return killed


def killer(point: int) -> Callable[..., None]:
    calls = count()

    def call(*_: object) -> None:
        if next(calls) == point:
            os.kill(os.getpid(), signal.SIGKILL)

    return call


def note(seen: list[tuple[int, int]], *progress: int) -> None:
    seen.append((progress[0], progress[1]))


def killed_at_file(point: int, work: Callable[[], object]) -> bool:
    """Run `work` in a child that is killed before its operation number `point` on a file; False once it has none."""

    def work_until_killed() -> None:
        call = killer(point)
        for owner, name in TOUCHES:
            original = getattr(owner, name)

            def counted(*args: Any, _original: Any = original, **kwargs: Any) -> Any:
                call()
                return _original(*args, **kwargs)

            setattr(owner, name, counted)
        work()

    return in_a_child(work_until_killed)


def points_of(run: Callable[[int], bool]) -> Iterator[int]:
    """The points at which `run` is killed, until it ends."""
    for point in count():
        if not run(point):
            assert point > 5
            return
        yield point


class TestMergeKilled:
    pytestmark = killing

    def continued(self, inputs: Path, wanted: dict[str, bytes], **settings: Any) -> None:
        """Run the same command again: the same bytes."""
        if not (inputs / "out").exists():
            merge_here(inputs, **settings)
        assert contents(inputs / "out") == wanted
        assert [path.name for path in inputs.glob("out*")] == ["out"]

    @pytest.mark.parametrize(
        "prepare",
        [lambda inputs: None, partial(move_base_to_folder, companions=COMPANIONS[:2])],
        ids=["file", "folder"],
    )
    def test_at_every_touch_of_a_file(self, inputs: Path, prepare: Callable[[Path], None]) -> None:
        prepare(inputs)
        two = {"max_shard_size": 600}
        wanted = contents(merge_here(inputs, **two))
        self.remove(inputs / "out")
        for _ in points_of(lambda point: killed_at_file(point, lambda: merge_here(inputs, **two))):
            if (inputs / "out").exists():
                assert contents(inputs / "out") == wanted
            self.continued(inputs, wanted, **two)
            self.remove(inputs / "out")

    def test_between_tensors_keeps_the_finished_shards(self, inputs: Path) -> None:
        wanted = contents(merge_here(inputs))
        self.remove(inputs / "out")
        for point in range(9):
            assert in_a_child(partial(merge_here, inputs, on_progress=killer(point)))
            half = inputs / "out.partial"
            journal = (half / "rst-journal.jsonl").read_text().splitlines()
            finished = [json.loads(line)["file"] for line in journal[1:]]
            times = {file: (half / file).stat().st_mtime_ns for file in finished}
            seen: list[tuple[int, int]] = []
            merge_here(inputs, on_progress=partial(note, seen))
            assert {file: (inputs / "out" / file).stat().st_mtime_ns for file in finished} == times
            assert seen == sorted(seen)
            assert seen[-1] == (seen[0][1], seen[0][1])
            kept = sum(len(load_file(inputs / "out" / file)) for file in finished)
            assert len(seen) == len(tuned()) - kept + len(finished)
            assert contents(inputs / "out") == wanted
            self.remove(inputs / "out")
        assert finished

    def remove(self, folder: Path) -> None:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()

    def half(self, inputs: Path) -> list[str]:
        """Kill a merge in the last shard; returns the names of the finished ones."""
        call = killer(8)
        assert in_a_child(lambda: merge_here(inputs, on_progress=lambda *_: call()))
        journal = (inputs / "out.partial" / "rst-journal.jsonl").read_text().splitlines()
        finished = [str(json.loads(line)["file"]) for line in journal[1:]]
        assert len(finished) == 3
        return finished

    @pytest.mark.parametrize("what", ["base", "delta", "size"])
    def test_other_inputs_start_anew(self, inputs: Path, what: str) -> None:
        self.half(inputs)
        base, target, size = weights(), tuned(), LIMIT
        if what == "base":
            base["norm.weight"] += 7
            save_file(base, inputs / "base.safetensors")
            export(base, target).save(inputs / "delta.safetensors")
        elif what == "delta":
            target["layers.0.weight"][0, 0] += 3
            export(base, target).save(inputs / "delta.safetensors")
        else:
            size = 900
        merge_here(inputs, max_shard_size=size)
        assert_state(open_checkpoint(inputs / "out"), target)
        assert [path.name for path in inputs.glob("out*")] == ["out"]
        assert len(list((inputs / "out").iterdir())) == (3 if what == "size" else 5)

    def test_a_changed_base_with_the_old_time_starts_anew(self, inputs: Path) -> None:
        path = inputs / "base.safetensors"
        before = path.stat()
        self.half(inputs)
        base = weights()
        base["norm.num_batches_tracked"] += 1  # unchanged by the delta, so that no digest tells
        save_file(base, path)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        merge_here(inputs)
        assert int(open_checkpoint(inputs / "out")["norm.num_batches_tracked"]) == 4

    def test_a_damaged_shard_is_written_again(self, inputs: Path) -> None:
        damaged = inputs / "out.partial" / self.half(inputs)[0]
        damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
        merge_here(inputs)
        assert_state(open_checkpoint(inputs / "out"), tuned())

    @pytest.mark.parametrize("damage", ["torn", "nonsense", "unknown file", "no journal"])
    def test_damage(self, inputs: Path, damage: str) -> None:
        self.half(inputs)
        folder = inputs / "out.partial"
        journal = folder / "rst-journal.jsonl"
        if damage == "torn":
            journal.write_bytes(journal.read_bytes()[:-5])
            merge_here(inputs)
            assert_state(open_checkpoint(inputs / "out"), tuned())
            return
        if damage == "nonsense":
            journal.write_text("[1, 2]\n")
        elif damage == "unknown file":
            (folder / "mine.txt").write_text("precious")
        else:
            journal.unlink()
        before = contents(folder)
        with refused(CheckpointError, "remove", file="out.partial"):
            merge_here(inputs)
        assert contents(folder) == before

    def test_two_at_once(self, inputs: Path) -> None:
        def second(*_: int) -> None:
            with refused(CheckpointError, file="out.partial"):
                merge_here(inputs)

        merge_here(inputs, on_progress=second)
        assert_state(open_checkpoint(inputs / "out"), tuned())


class TestExportKilled:
    pytestmark = killing

    @pytest.fixture(autouse=True)
    def small_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(resumable_export, "PART_BYTES", LIMIT)

    def export_here(self, inputs: Path, **settings: Any) -> SparseDelta:
        return export(
            inputs / "base.safetensors",
            inputs / "tuned.safetensors",
            output=inputs / "out.safetensors",
            **settings,
        )

    @pytest.mark.parametrize("encoding", ["coo", "packed"])
    def test_parts_end_in_the_bytes_of_one_run(self, inputs: Path, encoding: Any) -> None:
        wanted = export(inputs / "base.safetensors", inputs / "tuned.safetensors", op="step", threshold=1e-3)
        wanted.save(inputs / "wanted.safetensors", encoding)
        seen: list[tuple[int, int]] = []
        found = self.export_here(
            inputs,
            encoding=encoding,
            op="step",
            threshold=1e-3,
            on_progress=lambda *progress: seen.append(progress),
        )
        assert found == wanted
        assert found.config == wanted.config
        assert (inputs / "out.safetensors").read_bytes() == (inputs / "wanted.safetensors").read_bytes()
        assert seen == sorted(seen)
        assert seen[-1] == (sum(tensor.nbytes for tensor in tuned().values()),) * 2
        assert sorted(path.name for path in inputs.glob("out*")) == ["out.safetensors"]

    def test_at_every_touch_of_a_file(self, inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(resumable_export, "PART_BYTES", 600)  # two parts
        self.export_here(inputs)
        output = inputs / "out.safetensors"
        wanted = output.read_bytes()
        output.unlink()
        for _ in points_of(lambda point: killed_at_file(point, lambda: self.export_here(inputs))):
            assert not output.exists() or output.read_bytes() == wanted
            self.export_here(inputs)
            assert output.read_bytes() == wanted
            assert [path.name for path in inputs.glob("out*")] == ["out.safetensors"]
            output.unlink()
            for hidden in inputs.glob(".out.safetensors.*.tmp"):  # of a write that was killed
                hidden.unlink()

    def test_finished_parts_are_not_compared_again(self, inputs: Path) -> None:
        call = killer(6)
        assert in_a_child(lambda: self.export_here(inputs, on_progress=lambda *_: call()))
        kept = sorted((inputs / "out.safetensors.partial").glob("part-*"))
        assert kept
        seen: list[tuple[int, int]] = []
        self.export_here(inputs, on_progress=lambda *progress: seen.append(progress))
        assert len(seen) < 9
        assert_state(merge(weights(), SparseDelta.load(inputs / "out.safetensors")), tuned())

    @pytest.mark.parametrize("what", ["tuned", "threshold"])
    def test_other_inputs_start_anew(self, inputs: Path, what: str) -> None:
        call = killer(6)
        assert in_a_child(lambda: self.export_here(inputs, on_progress=lambda *_: call()))
        target = tuned()
        if what == "tuned":
            target["layers.0.weight"][0, 0] += 3
            save_file(target, inputs / "tuned.safetensors")
        settings: dict[str, Any] = {"threshold": 0.5} if what == "threshold" else {}
        assert self.export_here(inputs, **settings) == export(
            inputs / "base.safetensors", inputs / "tuned.safetensors", **settings
        )

    def test_an_error_leaves_nothing(self, inputs: Path) -> None:
        target = tuned()
        target["layers.5.weight"][0, 0] = float("nan")
        save_file(target, inputs / "tuned.safetensors")
        with refused(NonFiniteError, 1, file="tuned.safetensors", parameter="layers.5.weight"):
            self.export_here(inputs)
        assert not list(inputs.glob("out*"))


def test_weights_in_memory_are_saved_as_well(tmp_path: Path) -> None:
    delta = export(weights(), tuned(), output=tmp_path / "delta.safetensors", encoding="packed")
    assert SparseDelta.load(tmp_path / "delta.safetensors") == delta


class TestCommandLine:
    def run(self, capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    def test_a_folder(self, inputs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(inputs)
        merging = ("merge", "base.safetensors", "delta.safetensors", "-o", "out", "--max-shard-size", "300")
        code, told = self.run(capsys, *merging, "--dry-run")
        assert (code, (inputs / "out").exists()) == (0, False)
        assert "would write out" in told
        code, told = self.run(capsys, *merging, "--json")
        assert code == 0
        assert json.loads(told)["bytes"] == sum(path.stat().st_size for path in (inputs / "out").iterdir())
        assert_state(open_checkpoint(inputs / "out"), tuned())
        code, told = self.run(capsys, *merging, "--force")
        assert code == 2
        assert "new or empty folder" in told
        code, told = self.run(capsys, "export", "out", "--base", "base.safetensors", "-o", "again.safetensors")
        assert code == 0
        assert SparseDelta.load("again.safetensors").nnz == SparseDelta.load("delta.safetensors").nnz

    def test_a_size_that_is_none(self, inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code, told = self.run(
            capsys, "merge", inputs / "base.safetensors", inputs / "delta.safetensors", "--max-shard-size", "1GB"
        )
        assert code == 2
        assert "1GB" in told

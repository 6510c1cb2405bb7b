"""Merging files and state dicts: byte equality, structure, and refusals that leave nothing behind."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file

from rst import (
    CheckpointError,
    DeltaFormatError,
    ParameterMismatchError,
    RSTError,
    SparseDelta,
    WrongBaseError,
    export,
    merge,
)
from rst.numerics.exactness import bit_equal
from rst.numerics.fingerprint import digest
from rst.operations.merge import rehearse
from tests.refusal import refused

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def weights(dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "embed.weight": torch.randn(50, 8, generator=generator).to(dtype),
        "norm.weight": torch.ones(8, dtype=dtype),
        "norm.running_mean": torch.zeros(8),
        "norm.num_batches_tracked": torch.tensor(3),
        "scale": torch.tensor(0.5, dtype=dtype),
    }


def tuned(base: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    state = {name: tensor.clone() for name, tensor in base.items()}
    chosen = torch.rand(50, 8, generator=generator) < 0.05
    state["embed.weight"][chosen] *= -1.7
    state["norm.weight"] += 1e-2
    state["norm.running_mean"] += 0.25
    state["norm.num_batches_tracked"] += 10
    state["scale"] *= 3
    state["head.weight"] = torch.randn(3, 8, generator=generator).to(state["scale"].dtype)
    return state


def assert_equal(found: Any, wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert bit_equal(found[name], tensor), name


def read(path: Path) -> dict[str, torch.Tensor]:
    """Weights of a file or a folder of shards, without this library."""
    if path.is_dir():
        return {name: tensor for shard in path.glob("*.safetensors") for name, tensor in load_file(shard).items()}
    found: dict[str, torch.Tensor] = load_file(path) if path.suffix == ".safetensors" else torch.load(path)
    return found


def doubled(base: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights that residuals alone lead to, so that the delta's overlay is empty."""
    return base | {"norm.weight": base["norm.weight"] * 2}


@pytest.mark.parametrize("encoding", ["coo", "packed"])
@pytest.mark.parametrize("tune", [tuned, doubled])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kind_of_base_merges_into_every_kind_of_output(
    tmp_path: Path, dtype: torch.dtype, tune: Callable[..., dict[str, torch.Tensor]], encoding: Any
) -> None:
    base, delta = weights(dtype), tmp_path / "delta.safetensors"
    wanted = tune(base)
    export(base, wanted).save(delta, encoding)
    assert_equal(merge(base, SparseDelta.load(delta)), wanted)
    save_file(base, tmp_path / "base.safetensors")
    torch.save(base, tmp_path / "base.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there is no process group; older torch warns of itself, too
        dcp.save(base, checkpoint_id=tmp_path / "base")
    outputs: dict[str, Any] = {"out.safetensors": {}, "out": {}, "shards": {"max_shard_size": 300}}
    for source in ("base.safetensors", "base.pt", "base"):
        folder = tmp_path / f"from {source}"
        folder.mkdir()
        kinds = outputs | ({"out.pt": {}} if source == "base.pt" else {})
        for output, settings in kinds.items():
            merge(tmp_path / source, delta, folder / output, **settings)
            assert_equal(read(folder / output), wanted)
        assert {path.name for path in folder.iterdir()} == set(kinds)


def test_a_pickled_base_keeps_its_structure_and_prefix(tmp_path: Path) -> None:
    base = weights()
    nested = {"state_dict": {f"module.{name}": tensor for name, tensor in base.items()}, "epoch": 12}
    torch.save(nested, tmp_path / "base.th")
    merge(tmp_path / "base.th", export(base, tuned(base)), tmp_path / "out.th")
    merged = torch.load(tmp_path / "out.th", weights_only=True)
    assert merged["epoch"] == 12
    assert_equal(merged["state_dict"], {f"module.{name}": tensor for name, tensor in tuned(base).items()})
    merge(tmp_path / "base.th", export(base, tuned(base)), tmp_path / "out.safetensors")
    assert_equal(
        load_file(tmp_path / "out.safetensors"), {f"module.{name}": tensor for name, tensor in tuned(base).items()}
    )


def test_tied_tensors_change_together_and_stay_tied(tmp_path: Path) -> None:
    shared = torch.zeros(4)
    torch.save({"a": shared, "b": shared}, tmp_path / "base.pt")
    changed = torch.tensor([0.0, 1.0, 0.0, 0.0])
    torch.save({"a": changed, "b": changed}, tmp_path / "tuned.pt")
    delta = export(tmp_path / "base.pt", tmp_path / "tuned.pt")
    assert list(delta) == ["a"]
    assert delta.tied == {"b": "a"}
    merge(tmp_path / "base.pt", delta, tmp_path / "out.pt")
    merged = torch.load(tmp_path / "out.pt", weights_only=True)
    assert merged["a"].data_ptr() == merged["b"].data_ptr()
    assert torch.equal(merged["b"], changed)
    assert_equal(merge({"b": shared.clone()}, delta), {"b": changed})


def test_tied_on_one_side_only_is_not_tied(tmp_path: Path) -> None:
    base = {"a": torch.zeros(3), "b": torch.ones(3)}
    shared = torch.full((3,), 2.0)
    wanted = {"a": shared, "b": shared}
    assert_equal(merge(base, export(base, wanted)), wanted)


@pytest.mark.parametrize("name", ["a", "b"])
def test_of_tied_tensors_one_stored_whole_leaves_the_other_alone(name: str) -> None:
    shared = torch.zeros(3)
    base = {"a": shared, "b": shared}
    wanted = {"a": torch.zeros(3), "b": torch.zeros(3), name: torch.ones(3)}
    assert_equal(merge(base, export(base, wanted, modules_to_save=[name])), wanted)


def test_tied_tensors_stored_whole_change_together() -> None:
    shared, tuned_too = torch.zeros(3), torch.ones(3)
    wanted = {"a": tuned_too, "b": tuned_too}
    delta = export({"a": shared, "b": shared}, wanted, modules_to_save=["a", "b"])
    assert delta.tied == {"b": "a"}
    assert_equal(merge({"a": shared, "b": shared}, delta), wanted)
    assert_equal(merge({"a": shared}, delta), {"a": tuned_too})


def test_new_tensors_are_named_as_the_wrapped_base_names_its_own() -> None:
    base = {"module.a._orig_mod.w": torch.zeros(3), "module.b.w": torch.ones(3)}
    wanted = {**base, "module.head.w": torch.ones(2)}
    assert_equal(merge(base, export(base, wanted)), wanted)
    compiled = {"a._orig_mod.w": torch.zeros(3)}
    wanted = {**compiled, "head.w": torch.ones(2)}
    assert_equal(merge(compiled, export(compiled, wanted)), wanted)


def test_a_tensor_may_lie_in_memory_in_any_order() -> None:
    base = {"w": torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).t()}
    wanted = {"w": base["w"].clone()}
    wanted["w"][1, 2] = 5.0
    assert_equal(merge(base, export(base, wanted)), wanted)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_progress_counts_bytes(tmp_path: Path, suffix: str) -> None:
    base = {"a": torch.zeros(3), "b": torch.zeros(2, dtype=torch.bfloat16)}
    torch.save(base, tmp_path / "base.pt")
    seen: list[tuple[int, int]] = []
    merge(tmp_path / "base.pt", export(base, base), tmp_path / f"out{suffix}", on_progress=lambda *at: seen.append(at))
    assert seen == [(12, 16), (16, 16)]
    assert rehearse(tmp_path / "base.pt", export(base, base), on_progress=lambda *at: seen.append(at)) == 16
    assert seen == [(12, 16), (16, 16)] * 2


def resident(path: Path) -> int:
    """Bytes of a mapped file that are in this process's memory."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    kilobytes = 0
    for line in lines:
        if line.endswith(str(path)):
            kilobytes += next(int(field.split()[1]) for field in lines if field.startswith("Rss:"))
    return kilobytes << 10


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="counts pages as Linux reports them")
@pytest.mark.parametrize("changed", [True, False])
def test_of_a_mapped_base_no_more_than_a_tensor_stays_in_memory(tmp_path: Path, changed: bool) -> None:
    path, size = tmp_path / "base.safetensors", 1 << 22
    base = {f"w{number}": torch.ones(size // 4) for number in range(4)}
    save_file(base, path)
    delta = export(base, {name: tensor + changed for name, tensor in base.items()})
    seen: list[int] = []
    merge(path, delta, tmp_path / "out.safetensors", on_progress=lambda *_: seen.append(resident(path)))
    assert max(seen) < (size // 2 if changed else size * 3 // 2)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_tensors_without_residuals_are_replaced_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    base = {"q": torch.arange(200).remainder(100).to(torch.uint8).view(torch.int8).bool().to(dtype)}
    wanted = {"q": base["q"].clone()}
    view = wanted["q"].view(torch.uint8) if dtype.itemsize == 1 else wanted["q"]
    view[5] = 0 if base["q"][5] else 1
    delta = export(base, wanted)
    assert delta.nnz == 1
    delta.save(tmp_path / "delta.safetensors")
    assert_equal(merge(base, SparseDelta.load(tmp_path / "delta.safetensors")), wanted)


def test_an_excluded_tensor_stays_as_the_base_has_it() -> None:
    base = {"visual.w": torch.zeros(2), "text.w": torch.zeros(2)}
    delta = export(base, {"visual.w": torch.ones(2)}, exclude_modules=["text"])
    assert_equal(merge(base, delta), {"visual.w": torch.ones(2), "text.w": torch.zeros(2)})


def test_the_head_is_stored_whole_even_in_another_shape() -> None:
    base = {"body": torch.zeros(2), "head": torch.zeros(3)}
    wanted = {"body": torch.ones(2), "head": torch.ones(5)}
    with refused(ParameterMismatchError, "(5,)", "(3,)", parameter="head"):
        export(base, wanted)
    assert_equal(merge(base, export(base, wanted, modules_to_save=["head"])), wanted)


class TestRefusals:
    def check(self, tmp_path: Path, error: type[RSTError], base: Any, delta: Any, parameter: str, *shown: str) -> None:
        save_file(base, tmp_path / "base.safetensors")
        for suffix in (".safetensors", ".pt"):
            source = tmp_path / f"base{suffix}"
            if suffix == ".pt":
                torch.save(base, source)
            with refused(error, *shown, file=source, parameter=parameter):
                merge(source, delta, tmp_path / f"out{suffix}")
        left = sorted(path.name for path in tmp_path.iterdir())
        assert left == ["base.pt", "base.safetensors"]

    def test_a_wrong_base(self, tmp_path: Path) -> None:
        base = weights()
        delta = export(base, tuned(base))
        other = weights()
        other["embed.weight"][49, 7] += 1  # even where the delta changes nothing
        digests = digest(other["embed.weight"])[:12], digest(base["embed.weight"])[:12]
        self.check(tmp_path, WrongBaseError, other, delta, "embed.weight", *digests)

    def test_another_shape_and_dtype(self, tmp_path: Path) -> None:
        base = weights()
        delta = export(base, tuned(base))
        other = weights() | {"embed.weight": torch.zeros(51, 8)}
        self.check(tmp_path, ParameterMismatchError, other, delta, "embed.weight", "(51, 8)", "(50, 8)")
        self.check(tmp_path, ParameterMismatchError, weights(torch.float16), delta, "embed.weight", "float16")

    def test_a_missing_parameter(self, tmp_path: Path) -> None:
        base = weights()
        delta = export(base, tuned(base))
        del base["scale"]
        self.check(tmp_path, ParameterMismatchError, base, delta, "scale")

    def test_a_damaged_delta(self, tmp_path: Path) -> None:
        base = weights()
        export(base, tuned(base)).save(tmp_path / "delta.safetensors")
        content = (tmp_path / "delta.safetensors").read_bytes()
        (tmp_path / "delta.safetensors").write_bytes(content[:-1])
        save_file(base, tmp_path / "base.safetensors")
        with refused(DeltaFormatError, file="delta.safetensors"):
            merge(tmp_path / "base.safetensors", tmp_path / "delta.safetensors", tmp_path / "out.safetensors")
        assert not (tmp_path / "out.safetensors").exists()

    def test_a_delta_that_was_never_valid(self) -> None:
        delta = export({"w": torch.zeros(2)}, {"w": torch.ones(2)})
        broken = SparseDelta({"w": replace(delta["w"], values=torch.ones(3))})
        with refused(DeltaFormatError, 3, 2, file="delta", parameter="w"):
            merge({"w": torch.zeros(2)}, broken)

    def test_an_output_that_cannot_be(self, tmp_path: Path) -> None:
        base = weights()
        save_file(base, tmp_path / "base.safetensors")
        delta = export(base, tuned(base))
        with refused(CheckpointError, "base.safetensors", file="out.pt"):
            merge(tmp_path / "base.safetensors", delta, tmp_path / "out.pt")
        with refused(CheckpointError, ".safetensors, .pt, .pth, .ckpt, .th, .bin", file="out.h5"):
            merge(tmp_path / "base.safetensors", delta, tmp_path / "out.h5")
        with pytest.raises(FileNotFoundError):
            merge(tmp_path / "base.safetensors", delta, tmp_path / "nowhere" / "out.safetensors")

    def test_the_arguments_that_fit_no_form(self) -> None:
        with pytest.raises(TypeError):
            merge({"w": torch.ones(1)}, "delta.safetensors")  # type: ignore[call-overload]
        with pytest.raises(TypeError):
            merge("base.pt", "delta.safetensors")  # type: ignore[call-overload]

"""What `op="smallest"` chooses: no larger than any single operation, and the same weights once merged."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from rst import (
    ConfigError,
    ParameterMismatchError,
    ResidualSparseTrainer,
    RSTConfig,
    SparseDelta,
    WrongBaseError,
    convert,
    export,
    merge,
)
from rst.config import BaseStorage
from rst.delta.parameter_delta import Op
from rst.distributed import export_sharded
from rst.numerics.exactness import bit_equal
from rst.operations import forms, resumable_export
from rst.sync import Publisher
from tests.refusal import refused
from tests.strategies import pairs

OPS: tuple[Op, ...] = ("add", "replace", "step")
State = dict[str, torch.Tensor]
SLACK = 32  # bytes: the name of the operation, the digits of sizes, and filling up to 8


def packed_size(delta: SparseDelta) -> int:
    with TemporaryDirectory() as folder:
        delta.save(Path(folder) / "d.safetensors", "packed")
        return (Path(folder) / "d.safetensors").stat().st_size


def small_steps() -> tuple[State, State]:
    """Weights in bfloat16 that moved to a neighbour: steps are +-1, residuals as wide as the weights."""
    draw = torch.Generator().manual_seed(0)
    base = torch.randn(3000, generator=draw).bfloat16()
    return {"w": base}, {"w": torch.nextafter(base, torch.randn(3000, generator=draw).bfloat16())}


def other_weights() -> tuple[State, State]:
    """Random weights in float16 that became one of four values."""
    draw = torch.Generator().manual_seed(0)
    base, tuned = torch.randn(3000, generator=draw), torch.randint(4, (3000,), generator=draw)
    return {"w": base.half()}, {"w": tuned.half()}


def one_more() -> tuple[State, State]:
    """Whole numbers in float32, one more each: a single residual, many steps."""
    base = torch.randint(1, 1 << 20, (3000,), generator=torch.Generator().manual_seed(0)).float()
    return {"w": base}, {"w": base + 1}


CASES = {"step": small_steps, "replace": other_weights, "add": one_more}


@settings(max_examples=40)
@given(st.lists(pairs(), min_size=1, max_size=4))
def test_it_is_no_larger_than_any_operation_and_merges_alike(drawn: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    base = {f"w{i}": before for i, (before, _) in enumerate(drawn)}
    tuned = {f"w{i}": after for i, (_, after) in enumerate(drawn)}
    smallest = export(base, tuned, op="smallest")
    assert packed_size(smallest) <= SLACK + min(packed_size(export(base, tuned, op=op)) for op in OPS)
    merged = merge(base, smallest)
    assert all(bit_equal(merged[name], tuned[name]) for name in tuned)


@pytest.mark.parametrize("op", CASES)
def test_each_operation_is_chosen_where_it_is_smallest(op: Op, monkeypatch: pytest.MonkeyPatch) -> None:
    base, tuned = CASES[op]()
    wanted = export(base, tuned, op=op)
    assert packed_size(wanted) < 0.9 * min(packed_size(export(base, tuned, op=other)) for other in OPS if other != op)
    assert export(base, tuned, op="smallest") == wanted
    for start in OPS:
        assert convert(export(base, tuned, op=start), op="smallest", base=base) == wanted
    monkeypatch.setattr(forms, "_SAMPLE", 300)  # a tenth of them
    assert export(base, tuned, op="smallest") == wanted


def test_dtypes_without_residuals_stay_combinable_where_nothing_is_gained() -> None:
    base = {"i8": torch.tensor([1, 2, 3], dtype=torch.int8), "w": torch.tensor([0.0, 1.0])}
    tuned = {"i8": torch.tensor([1, 2, 4], dtype=torch.int8), "w": torch.tensor([0.5, 1.0])}
    delta = export(base, tuned, op="smallest")
    assert delta == export(base, tuned)  # one entry each: as many bytes in any form
    assert export(base, base, op="smallest").op == "add"


@pytest.mark.parametrize("entries", range(200, 2000, 300))
def test_what_residuals_miss_is_counted_with_its_place_in_the_header(entries: int) -> None:
    base, tuned = (one["w"][:entries].clone() for one in one_more())
    tuned[7] = -0.0  # no residual leads there
    smallest = packed_size(export({"w": base}, {"w": tuned}, op="smallest"))
    assert smallest <= SLACK + min(packed_size(export({"w": base}, {"w": tuned}, op=op)) for op in OPS)


@pytest.mark.parametrize("op", CASES)
def test_an_export_in_parts_chooses_one_operation_for_all(
    op: Op, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, tuned = CASES[op]()
    other_base, other_tuned = (one_more if op != "add" else small_steps)()
    few = slice(0, 20)  # a part that alone would have another operation
    save_file(base | {"few": other_base["w"][few].clone()}, tmp_path / "base.safetensors")
    save_file(tuned | {"few": other_tuned["w"][few].clone()}, tmp_path / "tuned.safetensors")
    files = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"
    export(*files, op="smallest", output=tmp_path / "whole.safetensors", encoding="packed")
    monkeypatch.setattr(resumable_export, "PART_BYTES", 1)
    delta = export(*files, op="smallest", output=tmp_path / "parts.safetensors", encoding="packed")
    assert delta == export(*files, op=op)
    assert (tmp_path / "parts.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


@pytest.mark.parametrize("storage", ["device", "sparse"])
def test_a_trainer_and_its_checkpoint_export_it(storage: BaseStorage) -> None:
    model = torch.nn.Linear(64, 64, dtype=torch.bfloat16)
    base = {name: weight.clone() for name, weight in model.state_dict().items()}
    trainer = ResidualSparseTrainer(model, RSTConfig(threshold=0.0, base_storage=storage))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    trainer.attach(optimizer)
    for weight in model.parameters():
        weight.grad = weight.detach().clone()  # every weight shrinks by a percent: one or two steps
    optimizer.step()
    wanted = trainer.export("step")
    assert trainer.export("smallest") == wanted
    checkpoint: Any = {"model": model.state_dict(), "trainer": trainer.state_dict()}
    assert dict(export(None, checkpoint, op="smallest")) == dict(wanted)
    assert all(bit_equal(merged, model.state_dict()[name]) for name, merged in merge(base, wanted).items())


def test_refusals(tmp_path: Path) -> None:
    base, tuned = small_steps()
    delta, unknown = export(base, tuned), cast(Op, "tiny")
    with refused(ConfigError, "smallest", "base"):
        convert(delta, op="smallest")
    with refused(WrongBaseError, delta.nnz, parameter="w"):
        convert(delta, op="smallest", base=tuned)
    with refused(ParameterMismatchError, file="state dict", parameter="w"):
        convert(delta, op="smallest", base={"v": base["w"]})
    with refused(ConfigError, "tiny", *OPS, "smallest"):
        export(base, tuned, op=unknown)
    model = torch.nn.Linear(2, 2)
    trainer = ResidualSparseTrainer(model, RSTConfig(threshold=0.0))
    with refused(ConfigError, "tiny", *OPS, "smallest"):
        trainer.export(unknown, select=False)
    with refused(ConfigError, "smallest", *OPS):
        export_sharded(trainer, cast(Op, "smallest"))
    with refused(ConfigError, "smallest", *OPS):
        Publisher(model, tmp_path / "chain", op=cast(Op, "smallest"))
    assert not (tmp_path / "chain").exists()

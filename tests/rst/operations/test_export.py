"""Exports of two checkpoints that do not fit together end with a name, and nothing else."""

from pathlib import Path

import pytest
import torch
from torch import nn

from rst import (
    CheckpointError,
    ConfigError,
    NonFiniteError,
    ParameterMismatchError,
    ResidualSparseTrainer,
    RSTConfig,
    SparseDelta,
    combine,
    convert,
    export,
    merge,
    to_shira,
)
from tests.refusal import refused


def test_a_missing_tensor_is_named() -> None:
    base = {f"w{i}": torch.zeros(1) for i in range(6)}
    with refused(ParameterMismatchError, "w1, w2, w3", 2, file="state dict"):
        export(base, {"w0": torch.zeros(1)})


def test_shape_and_dtype_are_named() -> None:
    with refused(ParameterMismatchError, "(3,)", "(2,)", parameter="w"):
        export({"w": torch.zeros(2)}, {"w": torch.zeros(3)})
    with refused(ParameterMismatchError, "float64", "float32", parameter="w"):
        export({"w": torch.zeros(2)}, {"w": torch.zeros(2).double()})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e5m2])
@pytest.mark.parametrize("name", ["w", "bn.running_mean", "head.weight"])
def test_nan_is_named_wherever_it_is(dtype: torch.dtype, name: str) -> None:
    bad = torch.tensor([1.0, float("nan"), float("nan")]).to(dtype)
    with refused(NonFiniteError, 2, 3, parameter=name):
        export({name: torch.ones(3).to(dtype)}, {name: bad}, modules_to_save=["head"] if "head" in name else None)


def test_complex_is_refused_by_name() -> None:
    phase = {"phase": torch.zeros(1, dtype=torch.complex64)}
    with refused(ParameterMismatchError, "complex64", parameter="phase"):
        export(phase, {"phase": phase["phase"] + 1})


def test_no_base_and_no_record(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1)}, tmp_path / "model.ckpt")
    with refused(CheckpointError, "--base", file="model.ckpt"):
        export(None, tmp_path / "model.ckpt")


def test_equal_weights_give_an_empty_delta() -> None:
    module = nn.Linear(3, 3)
    delta = export(module, module)
    assert (len(delta), delta.nnz, delta.dense, delta.density) == (0, 0, {}, 0.0)


def test_batchnorm_statistics_are_buffers_and_escape_the_threshold() -> None:
    base, tuned = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    tuned.running_mean += 1e-9
    delta = export(base, tuned, threshold=1e-3)
    assert delta.dense.keys() == delta.buffers == {"running_mean"}
    assert delta.dsp() == 0


def test_progress_counts_bytes() -> None:
    calls: list[tuple[int, int]] = []
    state = {"a": torch.zeros(3), "b": torch.zeros(2, dtype=torch.bfloat16)}
    export(state, state, on_progress=lambda done, total: calls.append((done, total)))
    assert calls == [(12, 16), (16, 16)]


def test_patterns_that_mean_nothing() -> None:
    state = {"head.weight": torch.zeros(1), "body.weight": torch.zeros(1)}
    with refused(ConfigError, "modules_to_save", "haed", "head"):
        export(state, state, modules_to_save=["haed"])
    with refused(ConfigError, "exclude_modules", "tail"):
        export(state, state, exclude_modules=["tail"])


def test_a_record_of_another_version_or_with_patterns(tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.zeros(1)}, "rst": {"format": "rst-trainer", "version": 9}}, tmp_path / "m.ckpt")
    with refused(CheckpointError, 9, 1, file="m.ckpt"):
        export(None, tmp_path / "m.ckpt")
    with refused(ConfigError, "modules_to_save"):
        export(None, tmp_path / "m.ckpt", modules_to_save=["w"])


class OnlyChild(nn.Module):
    """Every name starts as those of a DataParallel wrapper do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod.module."])
def test_a_child_called_module_is_no_wrapper(wrapper: str, tmp_path: Path) -> None:
    model, base, live = OnlyChild(), OnlyChild(), OnlyChild()
    trainer = ResidualSparseTrainer(model, RSTConfig(threshold=1e-3, modules_to_save=["2"]))
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor += 1
        model.module[0].weight[0] -= 1
    exported = trainer.export()
    wanted = {f"{wrapper}{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": wanted, "rst": trainer.state_dict()}, tmp_path / "model.ckpt")
    delta = export(None, tmp_path / "model.ckpt")
    assert delta == exported
    assert set(delta.dense) > {"module.2.weight", "module.1.running_mean"}
    before = {f"{wrapper}{name}": tensor for name, tensor in base.state_dict().items()}
    merged = merge(before, delta)
    assert merged.keys() == wanted.keys()
    assert [name for name, tensor in wanted.items() if not torch.equal(merged[name], tensor)] == []
    torch.save(before, tmp_path / "base.pt")
    assert merge(before, convert(delta, op="replace", base=tmp_path / "base.pt")).keys() == wanted.keys()
    combined = combine([delta], [1.0], base=tmp_path / "base.pt")
    assert dict(combined.parameters) == dict(delta.parameters)
    from_files = export(tmp_path / "base.pt", tmp_path / "model.ckpt")
    for change in (delta, from_files):
        with change.prepare(live):
            assert [
                name for name, tensor in live.state_dict().items() if not torch.equal(tensor, wanted[wrapper + name])
            ] == []


def test_a_child_called_module_beside_others_keeps_its_name() -> None:
    model = nn.ModuleDict({"module": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    tuned = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    delta = export(model, tuned)
    assert set(delta) == set(tuned)
    assert merge(dict(model.state_dict()), delta).keys() == tuned.keys()


def test_a_delta_of_a_child_called_module_as_shira(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    model = OnlyChild()
    trainer = ResidualSparseTrainer(model, RSTConfig(threshold=0.0))
    with torch.no_grad():
        model.module[0].weight[0] *= 1.25
    delta: SparseDelta = trainer.export(op="step")
    assert set(delta) == {"module.0.weight"}
    assert to_shira(delta, tmp_path / "shira", OnlyChild()) == {}


def test_a_tuned_checkpoint_that_lacks_what_its_record_names(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    record = ResidualSparseTrainer(model).state_dict()
    torch.save({"state_dict": {"weight": model.weight.detach()}, "rst": record}, tmp_path / "tuned.pt")
    with refused(ParameterMismatchError, "bias", file="tuned.pt"):
        export(None, tmp_path / "tuned.pt")

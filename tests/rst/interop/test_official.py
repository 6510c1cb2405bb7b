"""The released sparse checkpoints give, as deltas, the sums that plain addition gives."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rst import CheckpointError, NonFiniteError, ParameterMismatchError, SparseDelta, from_official, merge
from rst.numerics.exactness import bit_equal
from tests.refusal import refused

State = dict[str, Tensor]


def backbone(dtype: torch.dtype = torch.float32) -> State:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(40, 50)).to(dtype)
    state: State = dict(module.state_dict())
    state["2.weight"][0, :3] = torch.tensor([-0.0, 1e-30, 1e4])
    return state | {"scale": torch.tensor(0.5, dtype=dtype)}


def residuals_of(base: State, share: float = 0.2) -> State:
    """What `(tuned - base).to_sparse()` gives, of any size beside the base's, so that sums are rounded."""
    draw = torch.Generator().manual_seed(1)
    residuals = {}
    for name, tensor in base.items():
        size = torch.randn(tensor.shape, generator=draw) * 10.0 ** torch.randint(-4, 3, tensor.shape, generator=draw)
        chosen = torch.rand(tensor.shape, generator=draw) < share
        residuals[name] = (size * chosen).to(tensor.dtype).to_sparse()
    residuals["1.num_batches_tracked"] = torch.tensor(7).to_sparse()
    return residuals


def added(base: State, residuals: State) -> State:
    """Algorithm 2."""
    return {name: tensor + residuals[name].to_dense() for name, tensor in base.items()}


def save(path: Path, residuals: State, head: State | None = None, **others: Any) -> Path:
    torch.save({"backbone_state_dict": residuals, "head_state_dict": head or {}, **others}, path)
    return path


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_merged_weights_are_the_sums_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    base = backbone(dtype)
    residuals = residuals_of(base)
    torch.save(base, tmp_path / "base.pt")
    head = {"fc.weight": torch.randn(3, 4)}
    delta = from_official(save(tmp_path / "ar2cl.pt", residuals, head), tmp_path / "base.pt")
    delta.save(tmp_path / "delta.safetensors")
    delta = SparseDelta.load(tmp_path / "delta.safetensors")
    merged = merge(base, delta)
    wanted = added(base, residuals) | {"head.fc.weight": head["fc.weight"]}
    wanted["2.weight"][0, 0] = -0.0 if residuals["2.weight"].to_dense()[0, 0] == 0 else wanted["2.weight"][0, 0]
    assert wanted.keys() == merged.keys()
    assert [name for name, tensor in wanted.items() if not bit_equal(merged[name], tensor)] == []
    assert delta.buffers == {"1.num_batches_tracked", "1.running_mean", "1.running_var"} & delta.dense.keys()
    assert "1.num_batches_tracked" in delta.buffers
    assert delta.base.name == "base.pt"
    assert delta.base.weights == sum(tensor.numel() for name, tensor in base.items() if name not in delta.buffers)
    assert delta["2.weight"].base is not None
    assert delta["2.weight"].nnz <= residuals["2.weight"].values().numel()


def test_names_are_prefixed_as_told(tmp_path: Path) -> None:
    base = backbone()
    residuals = residuals_of(base)
    path = save(tmp_path / "x.pt", residuals, {"weight": torch.ones(2)})
    whole = {f"encoder.{name}": tensor for name, tensor in base.items()} | {"logit_scale": torch.tensor(1.0)}
    delta = from_official(path, whole, backbone_prefix="encoder.", head_prefix="classifier.")
    assert "encoder.2.weight" in delta
    assert "classifier.weight" in delta.dense
    merged = merge(whole, delta)
    assert torch.equal(merged["encoder.2.weight"], added(base, residuals)["2.weight"])
    with refused(ParameterMismatchError, "prefix", file="x.pt", parameter="0.weight"):
        from_official(path, whole)


def test_dense_and_uncoalesced_residuals(tmp_path: Path) -> None:
    base = {"a": torch.zeros(2, 3), "b": torch.zeros(2, 3)}
    twice = torch.sparse_coo_tensor([[1, 1, 0], [2, 2, 0]], [1.0, 2.0, 4.0], (2, 3), check_invariants=True)
    dense = torch.tensor([[0.0, 1, 0], [0, 0, 2]])
    merged = merge(base, from_official(save(tmp_path / "x.pt", {"a": twice, "b": dense}), base))
    assert merged["a"].tolist() == [[4, 0, 0], [0, 0, 3]]
    assert torch.equal(merged["b"], dense)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state:UserWarning")
def test_what_is_no_released_checkpoint_is_refused(tmp_path: Path) -> None:
    base = {"a": torch.ones(2, 3)}
    good = {"a": torch.ones(2, 3).to_sparse()}
    torch.save({"backbone_state_dict": good}, tmp_path / "headless.pt")
    torch.save(base, tmp_path / "plain.pt")
    for name, missing in (("headless.pt", "head"), ("plain.pt", "backbone")):
        with refused(CheckpointError, f"{missing}_state_dict", file=name):
            from_official(tmp_path / name, base)
    with refused(CheckpointError, file="gone.pt"):
        from_official(tmp_path / "gone.pt", base)
    with refused(ParameterMismatchError, "torch.float16 (2, 3)", "torch.float32 (2, 3)", file="half.pt", parameter="a"):
        from_official(save(tmp_path / "half.pt", {"a": torch.ones(2, 3).half().to_sparse()}), base)
    with refused(ParameterMismatchError, "prefix", file="both.pt", parameter="a"):
        from_official(save(tmp_path / "both.pt", good, {"a": torch.ones(1)}), base, head_prefix="")
    broken = torch.ones(2, 3)
    broken[0, 0] = torch.nan
    with refused(NonFiniteError, "1 of 6", file="nan.pt", parameter="a"):
        from_official(save(tmp_path / "nan.pt", {"a": broken.to_sparse()}), base)
    with refused(NonFiniteError, "1 of 1", file="nan_head.pt", parameter="head.b"):
        from_official(save(tmp_path / "nan_head.pt", good, {"b": torch.tensor([torch.nan])}), base)
    with refused(CheckpointError, "torch.sparse_csr", file="csr.pt", parameter="a"):
        from_official(save(tmp_path / "csr.pt", {"a": _csr()}), base)


def _csr() -> Tensor:
    return torch.sparse_csr_tensor([0, 1, 2], [0, 1], [1.0, 2.0], (2, 3), check_invariants=True)


def test_positions_outside_the_weight_are_refused(tmp_path: Path) -> None:
    hostile = torch.sparse_coo_tensor([[1], [900]], [1.0], (2, 3), check_invariants=False)
    path = save(tmp_path / "hostile.pt", {"a": hostile})
    with refused(CheckpointError, file="hostile.pt"):
        from_official(path, {"a": torch.ones(2, 3)})


def test_code_in_the_file_is_not_run(tmp_path: Path) -> None:
    save(tmp_path / "evil.pt", {}, run=_Touch(tmp_path / "ran"))
    with refused(CheckpointError, file="evil.pt"):
        from_official(tmp_path / "evil.pt", {"a": torch.ones(1)})
    assert not (tmp_path / "ran").exists()


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)

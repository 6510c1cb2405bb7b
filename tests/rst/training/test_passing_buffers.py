"""Buffers of any dtype and layout that do not change: nobody computes with them, so nothing refuses them."""

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from rst import CheckpointError, ParameterMismatchError, ResidualSparseTrainer, RSTConfig, export, get_rst_model, merge
from rst.numerics.exactness import bit_equal
from tests.refusal import refused

BUFFERS = {
    "complex": lambda: torch.ones(3, dtype=torch.complex64),
    "nan": lambda: torch.full((2,), float("nan")),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "meta": lambda: torch.empty(3, device="meta"),
    "expanded": lambda: torch.arange(3.0).expand(4, 3),
    "csr": lambda: torch.eye(3).to_sparse_csr(),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "per channel": lambda: torch.quantize_per_channel(
        torch.ones(3, 2), torch.tensor([0.1, 0.2, 0.3]), torch.zeros(3, dtype=torch.int64), 0, torch.qint8
    ),
    "float4": lambda: torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
    "e8m0": lambda: torch.ones(4, dtype=torch.uint8).view(torch.float8_e8m0fnu),
    "fnuz": lambda: torch.ones(4, dtype=torch.uint8).view(torch.float8_e4m3fnuz),
    "complex128": lambda: torch.ones(3, dtype=torch.complex128),
    "jagged": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
}
pytestmark = pytest.mark.filterwarnings("ignore")  # torch's, of prototype layouts, and of runs without a step


def model(buffer: Tensor) -> nn.Module:
    torch.manual_seed(0)
    linear = nn.Linear(8, 3)
    linear.register_buffer("b", buffer)
    return linear


@pytest.mark.parametrize("kind", BUFFERS)
@pytest.mark.parametrize("storage", [None, "device", "cpu", "mmap"])
def test_an_unchanged_buffer_passes_export_and_switching(kind, storage):
    wrapped = get_rst_model(model(BUFFERS[kind]()), RSTConfig(threshold=0.0, base_storage=storage))
    with torch.no_grad():
        wrapped.base_model.weight += 1
    delta = wrapped.trainer.export()
    assert list(delta) == ["weight"]
    assert not delta.dense
    wrapped.disable_adapters()
    assert torch.equal(wrapped.base_model.weight, model(BUFFERS[kind]()).weight)


@pytest.mark.parametrize("kind", BUFFERS)
def test_an_unchanged_tensor_passes_between_two_modules(kind):
    base, tuned = model(BUFFERS[kind]()), model(BUFFERS[kind]())
    with torch.no_grad():
        tuned.weight += 1
    delta = export(base, tuned)
    assert list(delta) == ["weight"]
    merged = merge(base.state_dict(), delta)
    assert torch.equal(merged["weight"], tuned.weight)
    assert merged["b"].layout == base.b.layout


@pytest.mark.parametrize("kind", ["complex", "sparse"])
def test_a_change_that_no_delta_holds_is_refused_in_its_name(kind):
    trained = model(BUFFERS[kind]())
    trainer = ResidualSparseTrainer(trained, RSTConfig(threshold=0.0))
    excluding = ResidualSparseTrainer(model(BUFFERS[kind]()), RSTConfig(threshold=0.0, exclude_modules=["b"]))
    trained.b = trained.b * 2
    with pytest.raises(ParameterMismatchError) as caught:
        trainer.export()
    assert caught.value.parameter == "b"
    assert "exclude_modules" in str(caught.value)
    excluding.model.b = excluding.model.b * 2
    assert not excluding.export().dense


def test_a_module_to_be_stored_whole_is_refused_before_training():
    with pytest.raises(ParameterMismatchError) as caught:
        ResidualSparseTrainer(model(BUFFERS["sparse"]()), RSTConfig(modules_to_save=["b"]))
    assert caught.value.parameter == "b"


@pytest.mark.parametrize("kind", ["complex", "sparse"])
@pytest.mark.parametrize("storage", ["device", "cpu", "mmap", "sparse"])
def test_a_change_that_no_delta_holds_is_told_of_at_the_first_step(kind, storage):
    trained = model(BUFFERS[kind]())
    trainer = ResidualSparseTrainer(trained, RSTConfig(threshold=0.0, base_storage=storage))
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    trainer.attach(optimizer)

    def step():
        trained(torch.ones(2, 8)).sum().backward()
        optimizer.step()

    step()
    trained.b = BUFFERS[kind]()  # made anew, the same
    step()
    trained.b = trained.b * 2
    with pytest.raises(ParameterMismatchError) as caught:
        step()
    assert caught.value.parameter == "b"
    assert "exclude_modules" in str(caught.value)


def test_a_change_in_place_of_what_no_delta_holds_is_told_of_too():
    trained = model(torch.ones(3, dtype=torch.complex64))
    trainer = ResidualSparseTrainer(trained, RSTConfig(threshold=0.0))
    trained.b.mul_(1)
    trainer.step()
    trained.b.mul_(2)
    with pytest.raises(ParameterMismatchError) as caught:
        trainer.step()
    assert caught.value.parameter == "b"


@pytest.mark.parametrize("kind", BUFFERS)
def test_an_unchanged_buffer_passes_live_switching_and_resuming(kind):
    base, tuned = model(BUFFERS[kind]()), model(BUFFERS[kind]())
    with torch.no_grad():
        tuned.weight += 1
    delta = export(base, tuned)
    prepared = delta.apply(base)
    assert torch.equal(base.weight, tuned.weight)
    assert bit_equal(base.b, tuned.b)
    prepared.remove()
    assert torch.equal(base.weight, model(BUFFERS[kind]()).weight)
    wrapped = get_rst_model(model(BUFFERS[kind]()), RSTConfig(threshold=0.0))
    wrapped.add_adapter("other", delta)
    wrapped.set_adapter("other")
    assert torch.equal(wrapped.base_model.weight, tuned.weight)
    merged = wrapped.merge_and_unload()
    assert bit_equal(merged.b, tuned.b)
    trained = model(BUFFERS[kind]())
    state = ResidualSparseTrainer(trained, RSTConfig(threshold=0.0)).state_dict()
    resumed = ResidualSparseTrainer(trained, RSTConfig(threshold=0.0))
    resumed.load_state_dict(state)
    with torch.no_grad():
        trained.weight += 1
    assert list(resumed.export()) == ["weight"]


@pytest.mark.parametrize("kind", sorted(BUFFERS.keys() - {"nested", "jagged"}))
def test_an_unchanged_buffer_passes_a_trainers_own_checkpoint(tmp_path, kind):
    trained = model(BUFFERS[kind]())
    trainer = ResidualSparseTrainer(trained, RSTConfig(threshold=0.0))
    with torch.no_grad():
        trained.weight += 1
    torch.save({"model": trained.state_dict(), "rst": trainer.state_dict()}, tmp_path / "c.pt")
    delta = export(None, tmp_path / "c.pt")
    assert list(delta) == ["weight"]
    assert not delta.dense


@pytest.mark.parametrize("kind", sorted(BUFFERS.keys() - {"nested", "jagged", "meta"}))
def test_an_unchanged_tensor_passes_distributed_checkpoints(tmp_path, kind):
    for name, more in {"base": 0, "tuned": 1}.items():
        module = model(BUFFERS[kind]())
        with torch.no_grad():
            module.weight += more
        try:
            dcp.save({"model": module.state_dict()}, checkpoint_id=tmp_path / name, no_dist=True)
        except CheckpointException:
            assert kind in ("sparse", "csr")  # torch.distributed.checkpoint does not save them
            return
    if kind in ("quantised", "per channel"):  # and does not read these
        with refused(CheckpointError, "exclude_modules", file="tuned", parameter="model.b"):
            export(tmp_path / "base", tmp_path / "tuned")
    left_out = ["b"] if kind in ("quantised", "per channel") else None
    delta = export(tmp_path / "base", tmp_path / "tuned", exclude_modules=left_out)
    assert list(delta) == ["weight"]
    assert not delta.dense

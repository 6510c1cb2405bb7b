"""Buffers of any dtype and layout that do not change: nobody computes with them, so nothing refuses them."""

import pytest
import torch
from torch import Tensor, nn

from rst import ParameterMismatchError, ResidualSparseTrainer, RSTConfig, export, get_rst_model, merge

BUFFERS = {
    "complex": lambda: torch.ones(3, dtype=torch.complex64),
    "nan": lambda: torch.full((2,), float("nan")),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "meta": lambda: torch.empty(3, device="meta"),
    "expanded": lambda: torch.arange(3.0).expand(4, 3),
}
pytestmark = pytest.mark.filterwarnings("ignore")  # torch's, of prototype layouts, and of runs without a step


def model(buffer: Tensor) -> nn.Module:
    torch.manual_seed(0)
    linear = nn.Linear(8, 3)
    linear.register_buffer("b", buffer)
    return linear


@pytest.mark.parametrize("kind", BUFFERS)
@pytest.mark.parametrize("storage", ["device", "cpu", "mmap"])
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

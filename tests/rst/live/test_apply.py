"""A delta on a live module: all or nothing."""

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from rst import DeltaFormatError, ParameterDelta, ParameterMismatchError, RSTModel, SparseDelta, WrongBaseError, export
from rst.errors import RSTWarning
from rst.live.patch import Patch
from rst.numerics.exactness import bit_equal


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


def changed(seed: int = 1) -> nn.Sequential:
    tuned = model()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in tuned.parameters():
            mask = torch.rand(parameter.shape, generator=generator) < 0.3
            parameter[mask] += 0.1
        tuned[1].running_mean += 1
    return tuned


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_state(module: nn.Module, wanted: dict[str, torch.Tensor]) -> None:
    for name, tensor in module.state_dict().items():
        assert bit_equal(tensor, wanted[name]), name


def test_other_memory_formats_are_changed_in_place() -> None:
    live = model().to(memory_format=torch.channels_last)
    weight = live[0].weight
    before, pointer = snapshot(live), weight.data_ptr()
    with export(model(), changed(), modules_to_save=["2"]).apply(live):
        assert_state(live, snapshot(changed()))
        assert weight.data_ptr() == pointer
        assert weight.is_contiguous(memory_format=torch.channels_last)
    assert_state(live, before)


def test_a_context_manager_removes_even_after_an_exception() -> None:
    live = model()
    before = snapshot(live)
    with pytest.raises(KeyError), export(model(), changed()).apply(live):
        raise KeyError
    assert_state(live, before)


def test_the_autograd_graph_does_not_notice() -> None:
    live = model()
    with export(model(), changed()).apply(live):
        live[2](torch.ones(1, 4)).sum().backward()
    assert live[2].weight.grad is not None


def test_autograd_notices_a_swap_between_forward_and_backward() -> None:
    live, features = model(), torch.ones(1, 4, requires_grad=True)
    prepared = export(model(), changed()).prepare(live)
    for swap in (prepared.apply, prepared.remove):
        loss = live[2](features).sum()
        swap()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_tensors_stored_whole_may_be_parameters() -> None:
    live, head = model(), nn.Parameter(torch.ones(2))
    with SparseDelta({}, dense={"2.bias": head}).apply(live):
        assert bit_equal(live[2].bias.data, head.data)
    assert_state(live, snapshot(model()))


@pytest.mark.parametrize("wrong", ["0.weight", "1.running_mean", "2.weight"])
def test_the_tensor_that_is_not_the_base_s_is_named(wrong: str) -> None:
    live = model()
    prepared = export(model(), changed()).prepare(live)
    with torch.no_grad():
        live.state_dict()[wrong] += 1
    before = snapshot(live)
    with pytest.raises(WrongBaseError, match=rf"^{wrong}: no longer has the base's values"):
        prepared.apply()
    assert_state(live, before)


def test_many_parameters_are_prepared_in_several_batches() -> None:
    base = {f"{index}.weight": torch.randn(100, 100) for index in range(9)}
    base |= {f"{index}.bias": torch.randn(100).bfloat16() for index in range(9)}
    tuned = {name: weights + 1 for name, weights in base.items()}
    live = nn.Sequential(*(nn.Linear(100, 100) for _ in range(9)))
    for layer in live:
        layer.bias.data = layer.bias.data.bfloat16()
    live.load_state_dict(base)
    with export(base, tuned).apply(live):
        assert_state(live, tuned)
    assert_state(live, base)


def refused(delta: SparseDelta, error: type[Exception], message: str, live: nn.Module | None = None) -> None:
    live = live or model()
    before = snapshot(live)
    with pytest.raises(error, match=message):
        delta.apply(live)
    assert_state(live, before)


def test_a_wrong_base_is_noticed_at_the_changed_positions() -> None:
    delta = export(model(), changed())
    live = model()
    with torch.no_grad():
        live[2].weight.view(-1)[delta["2.weight"].indices[0]] += 1
    refused(delta, WrongBaseError, r"2\.weight: the base's values at the \d+ changed positions", live)


def test_applying_twice_is_a_wrong_base() -> None:
    delta, live = export(model(), changed()), model()
    delta.apply(live)
    refused(delta, WrongBaseError, "weight", live)


def test_missing_and_misfit_parameters() -> None:
    delta = export(model(), changed())
    refused(delta, ParameterMismatchError, "the module has no such", nn.Sequential(nn.Conv2d(3, 4, 3)))
    refused(delta, ParameterMismatchError, r"float64", model().double())
    wider = model()
    wider[2] = nn.Linear(5, 2)
    refused(delta, ParameterMismatchError, r"2\.weight: .*\(2, 4\), but the module has torch.float32 \(2, 5\)", wider)


def hand_made(**parts: Any) -> SparseDelta:
    fields = {"indices": [0, 1], "values": [1.0, 2.0], "exact_indices": [], "exact_values": []} | parts
    tensors = {
        name: part
        if isinstance(part, torch.Tensor)
        else torch.tensor(part, dtype=torch.float32 if name.endswith("values") else torch.int32)
        for name, part in fields.items()
    }
    return SparseDelta({"2.bias": ParameterDelta(shape=(2,), dtype=torch.float32, **tensors)})


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"indices": [0, 2]}, "indices spans 0 to 2, the parameter has 2 weights"),
        ({"indices": [-1, 0]}, "indices spans -1 to 0"),
        ({"indices": [1, 0]}, "not sorted or repeats"),
        ({"indices": [1, 1]}, "not sorted or repeats"),
        ({"indices": [0]}, "2 values for 1 positions"),
        ({"indices": torch.tensor([0.0, 1.0])}, "not 1-D int32 or int64"),
        ({"indices": torch.tensor([[0, 1]])}, "not 1-D int32 or int64"),
        ({"values": torch.tensor([1.0, 2.0], dtype=torch.float64)}, "values is torch.float64"),
        ({"values": [1.0, float("nan")]}, "1 of 2 residuals are NaN or infinite"),
        ({"values": [1.0, float("inf")]}, "1 of 2 residuals are NaN or infinite"),
        ({"exact_indices": [0]}, "0 exact_values for 1 positions"),
        ({"exact_indices": [0], "exact_values": [float("nan")]}, "exact_values has 1 NaN"),
        ({"indices": [0], "values": [1.0], "exact_indices": [1], "exact_values": [1.0]}, "that indices lacks"),
    ],
)
def test_malformed_changes(parts: dict[str, Any], message: str, tmp_path: Any) -> None:
    delta = hand_made(**parts)
    refused(delta, DeltaFormatError, message)
    with pytest.raises(DeltaFormatError, match=message):
        delta.save(tmp_path / "delta.safetensors")
    assert not list(tmp_path.iterdir())


def test_an_interruption_between_two_writes_puts_everything_back(monkeypatch: pytest.MonkeyPatch) -> None:
    live, delta = model(), export(model(), changed())
    before = snapshot(live)
    real, calls = Patch.write, []

    def interrupted(*arguments: Any) -> None:
        calls.append(arguments)
        real(*arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Patch, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        delta.apply(live)
    assert_state(live, before)


def test_a_refused_swap_leaves_every_byte_and_autograds_counts() -> None:
    live = model()
    prepared, last = export(model(), changed()).prepare(live), live[2].weight
    with torch.no_grad():
        last[changed()[2].weight != last] += 1
    before, counts = snapshot(live), [weight._version for weight in live.parameters()]
    with pytest.raises(WrongBaseError) as caught:
        prepared.apply()
    assert caught.value.parameter == "2.weight"
    assert not prepared.applied
    assert_state(live, before)
    assert [weight._version for weight in live.parameters()] == counts


def test_a_prepared_delta_goes_on_and_off_again() -> None:
    live, first, second = model(), changed(1), changed(2)
    before = snapshot(live)
    deltas = [export(model(), tuned).prepare(live) for tuned in (first, second)]
    assert_state(live, before)
    for _ in range(3):
        for prepared, tuned in zip(deltas, (first, second), strict=True):
            prepared.apply()
            assert prepared.applied
            assert_state(live, snapshot(tuned))
            prepared.apply()
            assert_state(live, snapshot(tuned))
            prepared.remove()
            prepared.remove()
            assert_state(live, before)


def test_a_module_without_values_is_refused() -> None:
    with pytest.raises(ParameterMismatchError, match=r"0\.weight: in the delta, but .* on the meta device"):
        export(model(), changed()).prepare(model().to("meta"))


def test_the_bytes_held_are_counted() -> None:
    delta = export(model(), changed(), modules_to_save=["2"])
    live = model().to(memory_format=torch.channels_last)
    whole = sum(tensor.nbytes for tensor in delta.dense.values())
    assert len(delta.dense) > 2
    assert delta.prepare(live).nbytes == delta.nnz * (8 + 2 * 4) + 2 * whole
    small = export(model().bfloat16(), changed().bfloat16())
    assert small.sparse_only().prepare(model().bfloat16()).nbytes == small.nnz * (8 + 2 * 2)


def test_a_second_delta_on_the_same_weights_is_refused_until_the_first_is_off() -> None:
    live = model()
    first, second = (export(model(), changed(seed)).prepare(live) for seed in (1, 2))
    with first:
        wanted = snapshot(live)
        with pytest.raises(WrongBaseError, match="is another delta applied"):
            second.apply()
        assert not second.applied
        assert_state(live, wanted)
    with second:
        assert_state(live, snapshot(changed(2)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("on", [False, True])
def test_tensors_that_were_replaced_or_cast_are_followed(dtype: torch.dtype, on: bool) -> None:
    live = model().to(memory_format=torch.channels_last)
    prepared = export(model(), changed(), modules_to_save=["2"]).prepare(live)
    prepared.apply() if on else None
    now = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in snapshot(live).items()}
    live.load_state_dict({name: tensor.clone() for name, tensor in now.items()}, assign=True)
    prepared.remove()
    assert_state(live, snapshot(model().to(dtype)))
    with prepared:
        assert_state(live, snapshot(changed().to(dtype)))
    assert_state(live, snapshot(model().to(dtype)))


@pytest.mark.parametrize(
    "replacement", [nn.Parameter(torch.zeros(3, 4)), nn.Parameter(torch.zeros(2, 4, dtype=torch.complex64)), None]
)
def test_a_tensor_that_has_gone_is_named(replacement: nn.Parameter | None) -> None:
    live = model()
    prepared = export(model(), changed()).prepare(live)
    live[2].weight = replacement
    with pytest.raises(ParameterMismatchError) as caught:
        prepared.apply()
    assert caught.value.parameter == "2.weight"
    assert not prepared.applied


def test_buffers_that_a_forward_pass_writes_are_put_back() -> None:
    live = model()
    with export(model(), changed()).apply(live):
        live[1](live[0](torch.randn(2, 3, 5, 5)))
        assert not torch.equal(live[1].running_mean, changed()[1].running_mean)
    assert torch.equal(live[1].running_mean, model()[1].running_mean)


@pytest.mark.parametrize("name", ["0.weight", "2.weight"])
def test_weights_changed_while_the_delta_is_on_are_not_mixed_with_the_base(name: str) -> None:
    live = model()
    base = snapshot(live)
    prepared = export(model(), changed()).apply(live)
    with torch.no_grad():
        live.state_dict()[name].add_(1)
    before = snapshot(live)
    with pytest.raises(WrongBaseError) as caught:
        prepared.remove()
    assert caught.value.parameter == name
    assert prepared.applied
    assert_state(live, before)
    live.load_state_dict(base)
    prepared.remove()
    assert not prepared.applied
    assert_state(live, base)
    with prepared:
        assert_state(live, snapshot(changed()))


def test_the_base_loaded_again_in_part() -> None:
    live = model()
    prepared = export(model(), changed()).apply(live)
    live[2].load_state_dict(model()[2].state_dict())
    prepared.remove()
    assert_state(live, snapshot(model()))


def test_an_expanded_tensor_is_refused() -> None:
    live = model()
    live[2].bias = nn.Parameter(torch.zeros(1).expand(2))
    with pytest.raises(ParameterMismatchError) as caught:
        hand_made().apply(live)
    assert caught.value.parameter == "2.bias"


def copied(module: nn.Module, prepared: Any) -> Any:
    return pickle.loads(pickle.dumps((module, prepared)))


@pytest.mark.parametrize("copies", [copied, lambda *both: copy.deepcopy(both)], ids=["pickle", "deepcopy"])
def test_a_copy_may_lay_its_weights_out_in_another_way(copies: Any) -> None:
    live = model()
    wide = torch.zeros(2, 8)
    wide[:, ::2] = live[2].weight.detach()
    live[2].weight = nn.Parameter(wide[:, ::2])
    live[0].to(memory_format=torch.channels_last)
    other, prepared = copies(live, export(model(), changed()).apply(live))
    assert_state(other, snapshot(changed()))
    prepared.remove()
    assert_state(other, snapshot(model()))
    assert_state(live, snapshot(changed()))


class Tied(nn.Module):
    def __init__(self, tied: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.emb = nn.Embedding(9, 4)
        self.head = nn.Linear(4, 9, bias=False)
        self.head.weight = self.emb.weight if tied else nn.Parameter(self.emb.weight.detach().clone())


def test_one_tensor_under_two_names_is_changed_in_one_way_only() -> None:
    tuned = Tied(tied=False)
    with torch.no_grad():
        tuned.head.weight += 1
        tuned.emb.weight += 2
    live = Tied(tied=True)
    before = snapshot(live)
    with pytest.raises(ParameterMismatchError) as caught:
        export(Tied(tied=False), tuned).apply(live)
    assert caught.value.parameter == "head.weight"
    assert "emb.weight" in caught.value.reason
    assert_state(live, before)
    with torch.no_grad():
        tuned.head.weight.copy_(tuned.emb.weight)
    with export(Tied(tied=False), tuned).apply(live):  # alike: a checkpoint that has a tied tensor twice
        assert_state(live, snapshot(tuned))
    assert_state(live, before)


@pytest.mark.parametrize("ask", [torch.no_grad, torch.enable_grad])
def test_a_pass_without_the_delta_between_forward_and_backward(ask: Any) -> None:
    live, features = model(), torch.ones(1, 4)
    prepared = export(model(), changed()).prepare(live)
    wanted = torch.autograd.grad(live[2](features.requires_grad_()).square().sum(), features)
    loss = live[2](features).square().sum()
    with ask(), prepared:
        other = live[2](features).square().sum()
    assert torch.equal(torch.autograd.grad(loss, features)[0], wanted[0])
    if ask is torch.enable_grad:
        with pytest.raises(RuntimeError, match="inplace"):
            other.backward()


def test_what_was_written_beside_the_delta_is_not_taken_for_the_old_weights() -> None:
    live, tuned, features = model(), model(), torch.ones(1, 4, requires_grad=True)
    with torch.no_grad():
        tuned[2].weight[0] += 1
    prepared = export(model(), tuned).prepare(live)
    graphs = []
    for _ in range(3):
        graphs.append(live[2](features).sum())
        with prepared, torch.no_grad():
            live[2].weight[1] += 1
    for graph in graphs:
        with pytest.raises(RuntimeError, match="inplace"):
            graph.backward()


def test_weights_that_are_a_view_of_larger_memory() -> None:
    live = model()
    wide = torch.zeros(2, 8)
    wide[:, ::2] = live[2].weight.detach()
    live[2].weight = nn.Parameter(wide[:, ::2])
    with export(model(), changed()).apply(live):
        assert_state(live, snapshot(changed()))
        assert not live[2].weight.is_contiguous()
    assert_state(live, snapshot(model()))


@pytest.mark.parametrize("use", ["prepare", "apply", "add_adapter", "from_pretrained"])
@pytest.mark.parametrize("whole", [None, ["0"]], ids=["sparse", "stored whole"])
def test_a_model_of_another_dtype_is_told_the_cast(use: str, whole: list[str] | None, tmp_path: Any) -> None:
    base = nn.Sequential(nn.Linear(4, 4))
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned[0].weight[1, 2] += 1
    delta = export(base, tuned, modules_to_save=whole)
    delta.save(tmp_path / "delta.safetensors")
    live = copy.deepcopy(base).bfloat16()
    uses = {
        "prepare": lambda: delta.prepare(live),
        "apply": lambda: delta.apply(live),
        "add_adapter": lambda: RSTModel(live).add_adapter("one", delta),
        "from_pretrained": lambda: RSTModel.from_pretrained(live, tmp_path / "delta.safetensors"),
    }
    with pytest.raises(ParameterMismatchError) as caught:
        uses[use]()
    assert caught.value.parameter in {"0.weight", "0.bias"}
    assert "delta.to(dtype=torch.bfloat16)" in str(caught.value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RSTWarning)
        delta = delta.to(dtype=torch.bfloat16)
    delta.apply(live)


def test_no_cast_is_advised_where_the_shape_differs() -> None:
    base = nn.Sequential(nn.Linear(4, 4))
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned[0].weight[1, 2] += 1
    with pytest.raises(ParameterMismatchError) as caught:
        export(base, tuned).apply(nn.Sequential(nn.Linear(5, 4)).bfloat16())
    assert caught.value.parameter == "0.weight"
    assert "delta.to" not in str(caught.value)

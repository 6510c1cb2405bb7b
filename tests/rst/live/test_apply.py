"""A delta on a live module: all or nothing."""

from typing import Any

import pytest
import torch
from torch import nn

from rst import DeltaFormatError, ParameterDelta, ParameterMismatchError, SparseDelta, WrongBaseError, export
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
    refused(delta, ParameterMismatchError, r"2\.weight: .*\(2, 4\), the module has torch.float32 \(2, 5\)", wider)


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


def test_a_module_that_moved_needs_a_new_preparation() -> None:
    live = model()
    prepared = export(model(), changed()).prepare(live)
    live[2].weight.data = live[2].weight.data.clone()
    before = snapshot(live)
    with pytest.raises(ParameterMismatchError, match=r"2\.weight: moved or replaced since"):
        prepared.apply()
    assert_state(live, before)


def test_weights_that_are_a_view_of_larger_memory() -> None:
    live = model()
    wide = torch.zeros(2, 8)
    wide[:, ::2] = live[2].weight.detach()
    live[2].weight = nn.Parameter(wide[:, ::2])
    with export(model(), changed()).apply(live):
        assert_state(live, snapshot(changed()))
        assert not live[2].weight.is_contiguous()
    assert_state(live, snapshot(model()))

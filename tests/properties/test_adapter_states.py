"""Any sequence of PEFT's verbs, beside a model of it that keeps every adapter's weights in full."""

import tempfile

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor, nn

from rst import ConfigError, RSTConfig, RSTError, RSTModel, combine, export, merge
from rst.numerics.exactness import bit_equal
from tests.strategies import FLOAT_DTYPES, vectors

pytestmark = pytest.mark.slow

Dense = dict[str, Tensor]

SHAPES = {"weight": (3, 4), "bias": (3,), "table": (2, 2)}
NAMES = st.sampled_from(["art", "photo", "sketch"])
TAU = 0.25


class Weights(nn.Module):
    """A matrix, a vector, and a buffer that is saved."""

    def __init__(self, dense: Dense) -> None:
        super().__init__()
        self.weight = nn.Parameter(dense["weight"].clone())
        self.bias = nn.Parameter(dense["bias"].clone())
        self.register_buffer("table", dense["table"].clone())


@st.composite
def dense_weights(draw: st.DrawFn, dtype: torch.dtype) -> Dense:
    return {name: draw(vectors(dtype, torch.Size(shape).numel())).view(shape) for name, shape in SHAPES.items()}


class AdapterStates(RuleBasedStateMachine):
    """`RSTModel` against plain dictionaries: what is loaded, what is active, and which bits the weights have."""

    @initialize(data=st.data(), dtype=st.sampled_from(FLOAT_DTYPES))
    def start(self, data: st.DataObject, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.base: Dense = data.draw(dense_weights(dtype))
        self.model = RSTModel(Weights(self.base))
        self.adapters: dict[str, Dense] = {}
        self.in_training: set[str] = set()
        self.active: str | None = None
        self.enabled = True

    # Coming and going

    @rule(data=st.data(), name=NAMES)
    def add(self, data: st.DataObject, name: str) -> None:
        tuned = self.near_base(data)
        if name in self.adapters:
            with pytest.raises(ConfigError, match=name):
                self.model.add_adapter(name, export(self.base, tuned))
            return
        self.model.add_adapter(name, export(self.base, tuned))
        self.loaded(name, tuned)

    @rule(data=st.data(), name=NAMES, encoding=st.sampled_from(["coo", "packed"]))
    def hotswap(self, data: st.DataObject, name: str, encoding: str) -> None:
        tuned = self.near_base(data)
        with tempfile.TemporaryDirectory() as folder:
            other = RSTModel(Weights(self.base))
            other.add_adapter("default", export(self.base, tuned))
            other.save_pretrained(folder, encoding=encoding)
            if name not in self.adapters:
                with pytest.raises(ConfigError, match=name):
                    self.model.hotswap_adapter(folder, name)
                return
            self.model.hotswap_adapter(folder, name)
        self.adapters[name] = tuned
        self.in_training.discard(name)

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        if name not in self.adapters:
            with pytest.raises(ConfigError, match=name):
                self.model.delete_adapter(name)
            return
        self.model.delete_adapter(name)
        del self.adapters[name]
        self.in_training.discard(name)
        if self.active == name:
            self.active = next(iter(self.adapters), None)

    @rule(data=st.data(), name=NAMES, method=st.sampled_from(["linear", "ties", "magnitude_prune"]))
    @precondition(lambda self: self.adapters)
    def combine(self, data: st.DataObject, name: str, method: str) -> None:
        chosen = data.draw(st.lists(st.sampled_from(sorted(self.adapters)), min_size=1, max_size=3))
        weights = data.draw(st.lists(st.sampled_from([0.5, 1.0]), min_size=len(chosen), max_size=len(chosen)))
        density = None if method == "linear" else 0.5
        deltas = [self.model.get_delta(adapter) for adapter in chosen]
        try:
            combined = combine(deltas, weights, method=method, density=density)
            tuned = merge(self.base, combined)
        except RSTError as error:  # sums out of range, tensors stored whole by one alone
            with pytest.raises(type(error)):
                self.model.add_weighted_adapter(chosen, weights, name, method, density)
            return
        if name in self.adapters:
            with pytest.raises(ConfigError, match=name):
                self.model.add_weighted_adapter(chosen, weights, name, method, density)
            return
        self.model.add_weighted_adapter(chosen, weights, name, method, density)
        self.loaded(name, tuned)

    # Choosing

    @rule(name=NAMES, merging=st.booleans())
    def choose(self, name: str, merging: bool) -> None:
        choose = self.model.merge_adapter if merging else self.model.set_adapter
        if name not in self.adapters:
            with pytest.raises(ConfigError, match=name):
                choose([name])
            return
        choose([name])
        self.active, self.enabled = name, True

    @rule(unmerging=st.booleans())
    def disable(self, unmerging: bool) -> None:
        self.model.unmerge_adapter() if unmerging else self.model.disable_adapters()
        self.enabled = False

    @rule()
    def enable(self) -> None:
        self.model.enable_adapters()
        self.enabled = True

    @rule()
    def look_at_the_base(self) -> None:
        with self.model.disable_adapter():
            self.assert_holds(self.base)

    # Training

    @rule(name=NAMES)
    def train(self, name: str) -> None:
        config = RSTConfig(threshold=TAU)
        if name in self.adapters:
            with pytest.raises(ConfigError, match=name):
                self.model.add_adapter(name, config)
            return
        self.model.add_adapter(name, config)
        self.adapters[name] = self.base
        self.in_training.add(name)
        self.active, self.enabled = name, True

    @rule(data=st.data())
    @precondition(lambda self: self.enabled and self.active in self.in_training)
    def take_a_training_step(self, data: st.DataObject) -> None:
        moved = self.near_base(data)
        with torch.no_grad():
            self.model.base_model.weight.copy_(moved["weight"])
            self.model.base_model.bias.copy_(moved["bias"])
            self.model.base_model.table.copy_(moved["table"])
        self.model.trainer.step()
        selected = {name: selected_by_eq_17(self.base[name], moved[name]) for name in ("weight", "bias")}
        self.adapters[self.active] = selected | {"table": moved["table"]}

    # Leaving

    @rule(data=st.data())
    @precondition(lambda self: self.adapters)
    def merge_for_good(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.adapters)))
        module = self.model.merge_and_unload([name])
        assert isinstance(module, Weights)
        self.base, self.model = self.adapters[name], RSTModel(module)
        self.adapters, self.in_training, self.active, self.enabled = {}, set(), None, True

    @rule()
    def unload(self) -> None:
        module = self.model.unload()
        assert isinstance(module, Weights)
        self.model = RSTModel(module)
        self.adapters, self.in_training, self.active, self.enabled = {}, set(), None, True

    # What always holds

    @invariant()
    def weights_are_the_active_adapters(self) -> None:
        self.assert_holds(self.adapters[self.active] if self.active and self.enabled else self.base)

    @invariant()
    def names_are_known(self) -> None:
        assert self.model.adapter_names == list(self.adapters)
        assert self.model.active_adapter == self.active
        assert (self.model.trainer is not None) == (self.active in self.in_training)

    @invariant()
    def every_delta_gives_its_adapter(self) -> None:
        for name, tuned in self.adapters.items():
            found = merge(self.base, self.model.get_delta(name))
            assert all(bit_equal(found[part], tuned[part]) for part in tuned), name

    @invariant()
    def parameters_train_if_an_adapter_is_in_training_or_none_ever_was(self) -> None:
        trains = not self.in_training or (self.enabled and self.active in self.in_training)
        assert all(parameter.requires_grad == trains for parameter in self.model.base_model.parameters())

    def near_base(self, data: st.DataObject) -> Dense:
        """The base with other bits in some places."""
        other = data.draw(dense_weights(self.dtype))
        kept = data.draw(st.lists(st.booleans(), min_size=12, max_size=12))
        mask = torch.tensor(kept)
        return {
            name: torch.where(mask[: origin.numel()].view(origin.shape), origin, other[name])
            for name, origin in self.base.items()
        }

    def loaded(self, name: str, tuned: Dense) -> None:
        self.adapters[name] = tuned
        self.active = self.active or name

    def assert_holds(self, wanted: Dense) -> None:
        found = self.model.base_model.state_dict()
        assert all(bit_equal(found[name], tensor) for name, tensor in wanted.items())


def selected_by_eq_17(origin: Tensor, tuned: Tensor) -> Tensor:
    return torch.where((tuned - origin).abs() > TAU, tuned, origin)


AdapterStates.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestAdapterStates = AdapterStates.TestCase

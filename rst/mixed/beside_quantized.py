"""The products that adapters add beside quantised layers, each to its own samples of a mixed batch."""

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rst.errors import ParameterMismatchError
from rst.live.patch import LiveTensor
from rst.mixed.change import SparseChange
from rst.mixed.sample_groups import SampleGroups
from rst.mixed.sparse_product import add_linear
from rst.quantized.beside import SparseBeside


@dataclass
class LayerChange:
    """What one adapter changes in a quantised layer.

    Attributes:
        name: the name of the layer's weight, for messages.
        weight: the change that lies beside the weight.
        bias: the change of a bias that the layer adds in its own kernel.
    """

    name: str
    weight: SparseChange
    bias: SparseChange | None = None


@dataclass(frozen=True)
class LayerChanges:
    """What all adapters of a batch change in a quantised layer: `weight` and `bias` by adapter.

    Attributes:
        name: the name of the layer's weight, for messages.
    """

    name: str
    weight: dict[str, SparseChange] = field(default_factory=dict)
    bias: dict[str, SparseChange] = field(default_factory=dict)


def weight_change(beside: SparseBeside) -> SparseChange:
    """Return the sparse matrix beside a layer as the residual of its weight."""
    device = beside.target.layer.weight.device
    values = beside.values.detach().to(device, beside.dtype)  # rounded as the delta's values are
    return SparseChange(beside.positions.to(device).long(), torch.zeros_like(values), values, beside.target.shape)


def layer_of_bias(live: LiveTensor, layers: Iterable[nn.Module]) -> nn.Module | None:
    """Return the layer that has this bias if its kernel is not an operation of torch, else None."""
    for layer in layers:
        if live.place.owner is layer._parameters and type(layer) is not nn.Linear:
            return layer
    return None


@contextmanager
def beside_samples(layers: Mapping[nn.Module, LayerChanges], groups: SampleGroups) -> Iterator[None]:
    """Add each adapter's products to the outputs of its samples, in the forward passes of this thread."""
    with ExitStack() as hooks:
        for layer, changes in layers.items():
            hook = layer.register_forward_hook(_MixedBeside(changes, groups), with_kwargs=True)
            hooks.callback(hook.remove)
        yield


class _MixedBeside:
    def __init__(self, changes: LayerChanges, groups: SampleGroups) -> None:
        self._changes, self._groups, self._thread = changes, groups, threading.get_ident()

    def __call__(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor
    ) -> Tensor | None:
        if threading.get_ident() != self._thread:  # other threads use the model as it is
            return None
        inputs: Tensor = next(iter((*args, *kwargs.values())))
        if len(inputs) != self._groups.size or inputs.ndim < 2:
            raise ParameterMismatchError(
                f"its inputs {tuple(inputs.shape)} have not the {self._groups.size} samples in dimension 0",
                parameter=self._changes.name,
            )
        mixed = output.clone(memory_format=torch.contiguous_format)
        add_linear(mixed, inputs, self._changes.weight, self._changes.bias, self._groups)
        return mixed

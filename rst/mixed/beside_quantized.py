"""What adapters add beside quantised layers, each to its own samples of a mixed batch."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from rst.errors import ParameterMismatchError
from rst.live.patch import LiveTensor
from rst.mixed.sample_groups import SampleGroups
from rst.quantized.beside import SparseBeside


@contextmanager
def beside_samples(adapters: Mapping[str, Sequence[SparseBeside]], groups: SampleGroups) -> Iterator[None]:
    """Have each adapter's products in the outputs of its samples, in this thread's forward passes."""
    of_layer: dict[nn.Module, dict[str, SparseBeside]] = {}
    for adapter, besides in adapters.items():
        for beside in besides:
            of_layer.setdefault(beside.target.layer, {})[adapter] = beside
    with ExitStack() as hooks:
        for layer, changes in of_layer.items():
            hook = layer.register_forward_hook(_MixedBeside(changes, groups), with_kwargs=True)
            hooks.callback(hook.remove)
        yield


def refuse_bias(live: LiveTensor, besides: Sequence[SparseBeside]) -> None:
    """Raise `ParameterMismatchError` for the bias of a layer whose kernel is none of torch's operations."""
    for beside in besides:
        layer = beside.target.layer
        if live.place.owner is layer._parameters and type(layer) is not nn.Linear:
            raise ParameterMismatchError(
                f"{type(layer).__name__} adds it inside its own kernel, where it cannot differ between samples",
                parameter=live.name,
            )


class _MixedBeside:
    def __init__(self, changes: Mapping[str, SparseBeside], groups: SampleGroups) -> None:
        self._changes, self._groups, self._thread = changes, groups, threading.get_ident()

    def __call__(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor
    ) -> Tensor | None:
        if threading.get_ident() != self._thread:  # others use the model as it is
            return None
        inputs: Tensor = next(iter((*args, *kwargs.values())))
        if len(inputs) != self._groups.size or inputs.ndim < 2:
            first = next(iter(self._changes.values()))
            raise ParameterMismatchError(
                f"its inputs {tuple(inputs.shape)} have not the {self._groups.size} samples in dimension 0",
                parameter=first.target.name,
            )
        samples, mixed = self._groups.on(inputs.device), output.clone()

        def add(adapter: str, part: Tensor) -> None:
            own = inputs.index_select(0, samples[adapter]).flatten(0, -2)
            part += self._changes[adapter].product(own).to(part.dtype).view_as(part)

        self._groups.update(mixed, list(self._changes), add)
        return mixed

"""A mode of torch that intercepts the operations that read a tensor which differs between adapters.

Such a mode sees every operation before it runs, wherever it comes from: `nn.Linear`, a bare parameter that is added, a
weight that a function borrows. Nothing in the model is replaced, and other threads are not affected.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode, resolve_name

from rst.errors import ParameterMismatchError
from rst.mixed.attention import multi_head_attention
from rst.mixed.change import Varying, WholeChange
from rst.mixed.operations import (
    Rule,
    addmm,
    batch_norm,
    convolution,
    elementwise,
    embedding,
    group_norm,
    layer_norm,
    linear,
    matmul,
    recurrent,
)
from rst.mixed.sample_groups import SampleGroups

_RULES: dict[Callable[..., Any], Rule] = {
    functional.linear: linear,
    torch.matmul: matmul,
    Tensor.matmul: matmul,
    Tensor.__matmul__: matmul,
    torch.addmm: addmm,
    torch.conv1d: convolution(torch.conv1d),
    torch.conv2d: convolution(torch.conv2d),
    torch.conv3d: convolution(torch.conv3d),
    functional.embedding: embedding,
    functional.layer_norm: layer_norm,
    functional.group_norm: group_norm,
    functional.batch_norm: batch_norm,
    functional.multi_head_attention_forward: multi_head_attention,
}
_RULES |= {
    function: elementwise(function)
    for function in (
        *(torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, torch.sub, Tensor.sub, Tensor.__sub__),
        *(torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__),
    )
}
_RULES |= {function: recurrent(function) for function in (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)}
# These ask for properties of a tensor, not for its values, so the base's answer holds for every adapter.
_QUESTIONS = {
    "size",
    "dim",
    "ndimension",
    "numel",
    "nelement",
    "stride",
    "storage_offset",
    "element_size",
    "get_device",
}
_QUESTIONS |= {"is_floating_point", "is_complex", "is_contiguous", "is_same_size", "__len__", "__get__"}
_IN_PLACE = {"__iadd__", "__isub__", "__imul__", "__itruediv__", "__setitem__", "__set__"}
_REPEATING = {"expand", "expand_as", "repeat", "broadcast_to", "tile"}


class Derived(Tensor):
    """A tensor that was computed from one that varies, without the samples: a reshaped token, a cast embedding."""

    varying: Varying
    # The mode already sees every operation; the hook of the subclass would see it a second time.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def of(cls, varying: Varying) -> "Derived":
        """Return a tensor that stands for `varying` and looks like the base's tensor to the model."""
        derived = varying.base.detach().as_subclass(cls)
        derived.varying = varying
        return derived


class MixedContext(TorchFunctionMode):
    """While this mode is entered, each sample of the batch is computed with the tensors of its own adapter.

    Attributes:
        groups: the samples of each adapter in the batch.
    """

    def __init__(self, varying: Sequence[tuple[Tensor, Varying]], groups: SampleGroups) -> None:
        """Take the tensors as the model has them, with the changes that the adapters make to each."""
        super().__init__()
        self.groups = groups
        # Tensors are found by identity and kept alive: equality compares elements, and an id alone could be reused.
        self._varying = {id(tensor): (tensor, meaning) for tensor, meaning in varying}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operation."""
        kwargs = kwargs or {}
        if not any(self.varying(tensor) is not None for tensor in tensors_in((args, kwargs))):
            return func(*args, **kwargs)
        rule = _RULES.get(func)
        result = None if rule is None else rule(self, *args, **kwargs)
        return self.per_adapter(func, args, kwargs) if result is None else result

    def varying(self, tensor: Tensor | None) -> Varying | None:
        """Return the changes that the adapters make to a tensor; None if they leave it unchanged."""
        if isinstance(tensor, Derived):
            return tensor.varying
        found = self._varying.get(id(tensor))
        return None if found is None else found[1]

    def is_derived(self, tensor: Tensor | None) -> bool:
        """Return whether a tensor was computed from one that varies."""
        return isinstance(tensor, Derived)

    def has_samples(self, tensor: Tensor) -> bool:
        """Return whether a tensor is an activation: it does not vary, and has the samples in dimension 0.

        A parameter is none, also where its dimension 0 is as large as the batch.
        """
        varies = self.varying(tensor) is not None or isinstance(tensor, nn.Parameter)
        return not varies and tensor.ndim > 0 and len(tensor) == self.groups.size

    def name(self, *tensors: Tensor | None) -> str:
        """Return the names of the tensors that vary, for messages."""
        found = [varying.name for tensor in tensors if (varying := self.varying(tensor)) is not None]
        return ", ".join(dict.fromkeys(found))

    def linear(self, input: Tensor, weight: Tensor | None, bias: Tensor | None = None) -> Tensor:
        """Compute `functional.linear`, whether or not weight and bias vary."""
        result: Tensor = self.__torch_function__(functional.linear, (), (input, weight, bias))
        return result

    def per_adapter(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run an operation once per adapter, on its samples; without samples among the inputs, on what varies.

        Raises:
            ParameterMismatchError: the samples cannot be told apart, or the operation cannot be computed in this way.
                The message names the parameter and the operation.
        """
        operation, method = resolve_name(func) or repr(func), getattr(func, "__name__", "")
        tensors = [*tensors_in((args, kwargs))]
        names = self.name(*tensors)
        others = [tensor for tensor in tensors if self.varying(tensor) is None]
        with_samples = any(self.has_samples(tensor) for tensor in others)
        # With another first dimension, nothing tells which elements belong to which sample.
        strays = [tensor for tensor in others if tensor.is_floating_point() and not self._fits(tensor)]
        if strays:
            raise ParameterMismatchError(
                f"{names}: in {operation}, dimension 0 of {tuple(strays[0].shape)} is not the batch's "
                f"{self.groups.size} samples"
            )
        in_place = (method.endswith("_") and not method.endswith("__")) or method in _IN_PLACE
        if kwargs.get("out") is not None or (in_place and not (args and self.has_samples(args[0]))):
            raise ParameterMismatchError(
                f"{names}: {operation} would write into it, which a mixed batch does not support"
            )
        try:
            if not with_samples:
                return self._derive(func, args, kwargs, names, operation, repeats=method in _REPEATING)
            output = self._on_samples(func, args, kwargs, names, operation)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise ParameterMismatchError(f"{names}: {operation} cannot run sample by sample: {error}") from error
        return args[0].copy_(output) if in_place else output

    def _fits(self, tensor: Tensor) -> bool:
        return isinstance(tensor, nn.Parameter) or tensor.ndim == 0 or len(tensor) in (1, self.groups.size)

    def _derive(
        self, func: Callable[..., Any], args: Any, kwargs: Any, names: str, operation: str, *, repeats: bool
    ) -> Any:
        adapters = {name for tensor in tensors_in((args, kwargs)) for name in self._changing(tensor)}

        def under(adapter: str | None) -> Any:
            return func(*self._replace(args, adapter), **self._replace(kwargs, adapter))

        base = under(None)
        if not isinstance(base, Tensor):
            if getattr(func, "__name__", "") in _QUESTIONS:
                return base
            raise ParameterMismatchError(
                f"{names}: {operation} returns no tensor, so the result cannot differ between samples"
            )
        variants = {adapter: under(adapter) for adapter in adapters}
        # Where a class token is repeated for each sample, the samples part: from here on each has its own token.
        if repeats and base.ndim and len(base) == self.groups.size:
            output = base.clone(memory_format=torch.contiguous_format)
            for adapter, samples in self.groups.on(base.device).items():
                if adapter in variants:
                    output[samples] = variants[adapter][samples]
            return output
        return Derived.of(Varying(names, base, {adapter: WholeChange(one) for adapter, one in variants.items()}))

    def _on_samples(self, func: Callable[..., Any], args: Any, kwargs: Any, names: str, operation: str) -> Tensor:
        output: Tensor | None = None
        for adapter in self.groups.on(torch.device("cpu")):
            part = func(*self._replace(args, adapter, own=True), **self._replace(kwargs, adapter, own=True))
            count = len(self.groups.on(torch.device("cpu"))[adapter])
            if not isinstance(part, Tensor) or part.ndim == 0 or len(part) != count:
                shape = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
                raise ParameterMismatchError(
                    f"{names}: {operation} returns {shape} for {count} samples, so a mixed batch cannot tell its "
                    f"samples apart"
                )
            if output is None:
                output = part.new_empty(self.groups.size, *part.shape[1:])
            output[self.groups.on(part.device)[adapter]] = part
        assert output is not None
        return output

    def _changing(self, tensor: Tensor) -> Iterator[str]:
        varying = self.varying(tensor)
        yield from () if varying is None else varying.changes

    def _replace(self, value: Any, adapter: str | None, own: bool = False) -> Any:
        """Replace the tensors that vary by the adapter's, and with `own` also the samples by the adapter's."""
        if isinstance(value, Tensor):
            varying = self.varying(value)
            if varying is not None:
                return varying.under(adapter)
            if own and adapter is not None and self.has_samples(value):
                return value.index_select(0, self.groups.on(value.device)[adapter])
            return value
        if type(value) in (list, tuple):
            return type(value)(self._replace(one, adapter, own) for one in value)
        if type(value) is dict:
            return {key: self._replace(one, adapter, own) for key, one in value.items()}
        return value


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested lists, tuples and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from tensors_in(one)
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from tensors_in(one)

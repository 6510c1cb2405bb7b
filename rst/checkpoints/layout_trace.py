"""Tracing a function of tensors without their elements: which inputs go into which outputs, and if it only moves."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

_LAYS_OUT = {
    *("__getitem__", "cat", "chunk", "concat", "concatenate", "flatten", "movedim", "narrow", "permute", "reshape"),
    *("select", "split", "split_with_sizes", "squeeze", "stack", "swapaxes", "t", "tensor_split", "transpose"),
    *("unbind", "unflatten", "unsqueeze", "view", "__get__"),
}
_COPIES = {"clone", "contiguous", "detach"}


class TracedTensor(Tensor):
    """A tensor on the meta device that records its inputs. Copies are the tensor itself.

    Attributes:
        sources: names of the tensors whose elements it holds.
        changed: whether any function computed it from another.
        computed: the first function on the way that does more than rearrange elements, if any.
        memory: the memory of its only source, to recognise views of it.
    """

    sources: tuple[str, ...]
    changed: bool
    computed: str | None
    memory: int

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> "TracedTensor":
        """Create a stand-in for a tensor of any kind, of which only shape and dtype matter."""
        traced = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta").as_subclass(cls)
        traced.sources, traced.changed, traced.computed = (name,), False, None
        traced.memory = _memory(traced)
        return traced

    @property
    def is_view(self) -> bool:
        """Whether stride and offset determine where in its only source each element is."""
        return len(self.sources) == 1 and not self.computed and _memory(self) == self.memory

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one function, and record its inputs in its result."""
        name = getattr(func, "__name__", repr(func))
        if name in _COPIES:
            return args[0]
        result = super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        inputs = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, TracedTensor)]
        known = [leaf for leaf in inputs if hasattr(leaf, "sources")]

        def remember(leaf: Any) -> Any:
            if isinstance(leaf, TracedTensor) and not any(leaf is one for one in known):
                leaf.sources = tuple(dict.fromkeys(source for one in known for source in one.sources))
                leaf.changed, leaf.memory = True, known[0].memory if known else 0
                before = next((one.computed for one in known if one.computed), None)
                leaf.computed = before or (None if name in _LAYS_OUT else name)
            return leaf

        return tree_map(remember, result)


def _memory(tensor: Tensor) -> int:
    with torch._C.DisableTorchFunctionSubclass():
        return int(tensor.untyped_storage()._cdata)

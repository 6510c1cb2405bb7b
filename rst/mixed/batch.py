"""One forward pass over a batch whose samples use different adapters: `h = w0 x + w_sp x` (Eq. 15), for inference.

The base's weights process all samples in one dense pass, and the adapters add one sparse product per layer. The model
is not changed, and it gets no hooks, except at quantised layers.
"""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _pop_mode

from rst.delta.sparse_delta import SparseDelta
from rst.delta.validation import validate
from rst.errors import ConfigError, NonFiniteError, ParameterMismatchError
from rst.live.adapter_bank import BASE
from rst.live.apply import prepare, said_in_module
from rst.live.patch import EVERYTHING, LiveTensor, Patch
from rst.mixed.beside_quantized import LayerChange, LayerChanges, beside_samples, layer_of_bias, weight_change
from rst.mixed.change import Change, SparseChange, Varying, WholeChange
from rst.mixed.context import Derived, MixedContext, tensors_in
from rst.mixed.sample_groups import SampleGroups
from rst.naming import plain_name, unwrap


def mixed_forward(
    model: nn.Module,
    deltas: Mapping[str, SparseDelta],
    adapter_names: Sequence[str],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> Any:
    """Run a model that holds the base's weights, with a delta of its own for each sample, without gradients.

    This does what `RSTModel.forward(adapter_names=...)` does, for deltas without an `RSTModel`. It writes nothing into
    the model, so other threads may use the model at the same time.

    >>> logits = mixed_forward(model, {"art": art, "photo": photo}, ["photo", "__base__", "art"], (images,))

    Dimension 0 of every activation must be the samples (GPT-2's `addmm` may have them flattened with the tokens). A
    model that puts tokens first raises an error where the sizes reveal it. Linear layers, convolutions, embeddings,
    norms and `nn.MultiheadAttention` add sparse or per-sample terms; any other operation on a changed tensor runs once
    for each adapter, on that adapter's samples. A weight that no operation of torch reads goes unnoticed: one that is
    read inside a `torch.autograd.Function`, or one that was copied or transposed before.

    At its first use with a model, a delta is checked against the base by its digests; later calls only check that the
    tensors are still in the same place. The first forward pass of a batch prepares its joint product, which is kept
    until another choice of adapters comes. It holds the positions and values of each sample's adapter, 8 bytes per
    changed weight. If that is more than 256 MiB, it holds only the adapters with at most four samples, and each of the
    others has a product of its own.

    Args:
        model: a model in eval mode, on any device; a compiled one runs uncompiled.
        deltas: the deltas by adapter name.
        adapter_names: one name per sample; "__base__" stands for the base.
        args: the model's arguments; the first tensor in them, or else in `kwargs`, has the samples in dimension 0.
        kwargs: the model's keyword arguments.

    Raises:
        ConfigError: the number of names is not that of the samples, a name is unknown, the inputs contain no tensor,
            or the model is in training mode or compiled by `torch.jit`.
        ParameterMismatchError: an operation on a changed parameter cannot be computed sample by sample. The message
            names both.
        RSTError: as `rst.live.apply.prepare`. The model is unchanged in every case.
    """
    return mixed_call(unwrap(model), deltas, adapter_names, args, kwargs or {})


def mixed_call(
    model: nn.Module,
    deltas: Mapping[str, SparseDelta],
    adapter_names: Sequence[str],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    method: str = "__call__",
    repeats: int = 1,
) -> Any:
    """Do what `mixed_forward` does, for any method of an unwrapped model that runs its layers.

    Args:
        model: see `mixed_forward`.
        deltas: the deltas by adapter name.
        adapter_names: one name per sample of the inputs.
        args: the method's arguments.
        kwargs: the method's keyword arguments.
        method: the method's name.
        repeats: how often the method repeats each sample, side by side, before it runs the layers (beams).
    """
    _check(model, deltas, adapter_names, args, kwargs)
    adapters = {name: _prepared(model, delta) for name, delta in deltas.items() if name in {*adapter_names} - {BASE}}
    batch = _composed(model, adapters, tuple(name for name in adapter_names for _ in range(repeats)))
    with (
        _torch_state_kept(),
        torch.no_grad(),
        beside_samples(batch.beside, batch.groups),
        MixedContext(batch.varying, batch.groups),
    ):
        output = getattr(model, method)(*args, **kwargs)
    for tensor in tensors_in(output):
        if isinstance(tensor, Derived):
            raise ParameterMismatchError(
                f"the output {tuple(tensor.shape)} differs between adapters, but has no batch dimension",
                parameter=tensor.varying.name,
            )
    return output


@contextmanager
def _torch_state_kept() -> Iterator[None]:
    """Restore torch's modes, even if Ctrl-C prevents torch's own context managers from doing so."""
    modes, grad = torch._C._len_torch_function_stack(), torch.is_grad_enabled()
    try:
        yield
    finally:
        torch.set_grad_enabled(grad)
        while torch._C._len_torch_function_stack() > modes:
            _pop_mode()  # type: ignore[no-untyped-call]


_BYTES_AN_ENTRY = 8  # position and value
_MOST_JOINT = 1 << 28  # bytes of a joint index that holds a copy of the adapter's index for each sample
_FEW_COPIES = 4  # in a larger batch


@dataclass(frozen=True)
class _PreparedAdapter:
    """The changes of one delta, checked against one model."""

    changes: Sequence[tuple[LiveTensor, Change]]
    beside: Mapping[nn.Module, LayerChange]
    tensors: Sequence[LiveTensor]

    def fits(self) -> bool:
        """Return whether the model's tensors are still in the same place."""
        return all(live.is_current for live in self.tensors)


@dataclass(frozen=True)
class _Composition:
    """Which samples use which adapters, and what was prepared for all of them at once."""

    adapters: Mapping[str, _PreparedAdapter]
    groups: SampleGroups
    varying: Sequence[tuple[Tensor, Varying]]
    beside: Mapping[nn.Module, LayerChanges]


# Maps a model and the id of a delta to what was prepared. An entry is dropped with the model or the delta.
_known: weakref.WeakKeyDictionary[nn.Module, dict[int, _PreparedAdapter]] = weakref.WeakKeyDictionary()
# Only the latest is kept: its joint products are larger than the deltas, and a batch that recurs mostly comes next.
_latest: weakref.WeakKeyDictionary[nn.Module, _Composition] = weakref.WeakKeyDictionary()


def _composed(module: nn.Module, adapters: Mapping[str, _PreparedAdapter], names: tuple[str, ...]) -> _Composition:
    found = _latest.get(module)
    same = found is not None and found.groups.names == names and found.adapters.keys() == adapters.keys()
    if found is None or not same or any(found.adapters[name] is not one for name, one in adapters.items()):
        _latest.pop(module, None)
        groups = SampleGroups(names, _most_copies(adapters, names))
        found = _latest[module] = _Composition(adapters, groups, _varying(adapters), _beside(adapters))
    return found


def _most_copies(adapters: Mapping[str, _PreparedAdapter], names: Sequence[str]) -> int:
    """Return for how many samples an adapter's index may be copied so that the joint index stays small."""
    entries = {
        name: sum(change.rows.numel() for _, change in adapter.changes if isinstance(change, SparseChange))
        for name, adapter in adapters.items()
    }
    joint = sum(entries.get(name, 0) for name in names) * _BYTES_AN_ENTRY
    return len(names) if joint <= _MOST_JOINT else _FEW_COPIES


def _prepared(module: nn.Module, delta: SparseDelta) -> _PreparedAdapter:
    known = _known.setdefault(module, {})
    found = known.get(id(delta))
    if found is None or not found.fits():
        validate(delta.parameters, "delta")
        own = said_in_module(unwrap(module), delta)
        _refuse_scripted(module, own)
        prepared = prepare(module, own)
        patches = [patch for patch in prepared.patches if patch.live.tensor.numel()]
        beside: dict[nn.Module, LayerChange] = {}
        for one in prepared.besides:
            beside[one.target.layer] = LayerChange(one.target.name, weight_change(one))
        changes = []
        for patch in patches:
            change, layer = _change(patch, own), layer_of_bias(patch.live, beside)
            if layer is None:
                changes.append((patch.live, change))
            elif isinstance(change, SparseChange):
                beside[layer].bias = change
            else:
                raise ParameterMismatchError(
                    f"{type(layer).__name__} adds it inside its own kernel, and the adapter has it whole",
                    parameter=patch.live.name,
                )
        found = _PreparedAdapter(changes, beside, [patch.live for patch in patches])
        known[id(delta)] = found
        weakref.finalize(delta, _forget, weakref.ref(module), id(delta)).atexit = False
    return found


def _refuse_scripted(module: nn.Module, delta: SparseDelta) -> None:
    for path, owner in module.named_modules():
        inside = [name for name in [*delta, *delta.dense] if not path or name.startswith(f"{plain_name(path)}.")]
        if isinstance(owner, torch.jit.ScriptModule) and inside:
            raise ConfigError(
                "is in a module compiled by torch.jit, which hides the operations that read a parameter",
                parameter=inside[0],
            )


def _forget(module: "weakref.ref[nn.Module]", delta: int) -> None:
    model = module()
    if model is not None:
        gone = _known.get(model, {}).pop(delta, None)
        latest = _latest.get(model)
        if latest is not None and any(one is gone for one in latest.adapters.values()):
            _latest.pop(model, None)


def _change(patch: Patch, delta: SparseDelta) -> Change:
    live = patch.live
    if patch.positions is EVERYTHING:
        return WholeChange(delta.dense[live.name].to(live.tensor.device))
    positions = delta[live.name].indices.to(live.tensor.device, torch.int64)
    origin, values = (torch.as_tensor(part).view(live.tensor.dtype) for part in (patch.old, patch.new))
    change = SparseChange(positions, origin, values, tuple(live.tensor.shape))
    if not change.residual.isfinite().all():
        raise NonFiniteError(
            "the change has infinite weights, which a mixed batch cannot compute with", parameter=live.name
        )
    return change


def _varying(adapters: Mapping[str, _PreparedAdapter]) -> list[tuple[Tensor, Varying]]:
    """Return every tensor that an adapter changes, as the model has it, with the changes of all adapters."""
    found: dict[int, tuple[Tensor, Varying]] = {}
    for adapter, prepared in adapters.items():
        for live, change in prepared.changes:
            tensor = live.place.tensor  # the module's own tensor, which operations get; live.tensor is detached
            assert tensor is not None
            if id(tensor) not in found:
                found[id(tensor)] = tensor, Varying(live.name, tensor, {})
            found[id(tensor)][1].changes[adapter] = change
    return list(found.values())


def _beside(adapters: Mapping[str, _PreparedAdapter]) -> dict[nn.Module, LayerChanges]:
    """Return every quantised layer that an adapter changes, with the changes of all adapters."""
    found: dict[nn.Module, LayerChanges] = {}
    for adapter, prepared in adapters.items():
        for layer, change in prepared.beside.items():
            of_layer = found.setdefault(layer, LayerChanges(change.name))
            of_layer.weight[adapter] = change.weight
            if change.bias is not None:
                of_layer.bias[adapter] = change.bias
    return found


def _check(
    module: nn.Module,
    deltas: Mapping[str, SparseDelta],
    adapter_names: Sequence[str],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> None:
    if module.training:
        raise ConfigError("adapter_names are for inference, but the model is in training mode; call model.eval() first")
    unknown = sorted({*adapter_names} - {BASE, *deltas})
    if unknown:
        raise ConfigError(f"adapter_names: unknown {unknown}; known are {[*deltas]} and {BASE!r}")
    first = next((tensor for tensor in tensors_in([args, kwargs]) if tensor.ndim), None)
    if first is None:
        raise ConfigError("adapter_names need a batch, but no tensor with dimensions is among the model's inputs")
    if len(first) != len(adapter_names):
        raise ConfigError(f"{len(adapter_names)} adapter_names for a batch of {len(first)} samples")

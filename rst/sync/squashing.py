"""Two deltas that follow each other in a chain, as one."""

from dataclasses import replace

import torch

from rst.delta.parameter_delta import ParameterDelta
from rst.delta.sparse_delta import SparseDelta
from rst.delta.validation import validate
from rst.errors import ParameterMismatchError
from rst.sync.chain import Link, header, link_of
from rst.sync.errors import ChainOrderError


def squash(first: SparseDelta, second: SparseDelta) -> SparseDelta:
    """Compose two deltas of a chain exactly: applied once, the result gives the bits that both give one by one.

    Steps are added, modulo 2^width; of absolute values the second's win. The result's header leads from where `first`
    starts to where `second` ends, and `Follower.apply` takes it.

    Raises:
        ChainDamageError: one of them is not of a chain.
        ChainOrderError: `second` does not apply to what `first` yields.
        ParameterMismatchError: their operations differ or are residuals, whose sum is rounded; `rst.convert` makes
            steps or absolute values of them.
        DeltaFormatError: a delta is malformed.
    """
    link = _joined(link_of(first, "the first delta"), link_of(second, "the second delta"))
    for source, delta in (("the first delta", first), ("the second delta", second)):
        validate(delta.parameters, source)
        if delta.dense:
            raise ParameterMismatchError(
                f"stores {len(delta.dense)} tensors whole, which a chain never does", file=source
            )
    parameters = {**first.parameters, **second.parameters}
    for name in first.parameters.keys() & second.parameters.keys():
        parameters[name] = _composed(name, first[name], second[name])
    kept = {name: change for name, change in parameters.items() if change.nnz}
    tied = {alias: owner for alias, owner in {**first.tied, **second.tied}.items() if owner in kept}
    squashed = replace(second, parameters=kept, tied=tied, config=header(link))
    _check_op(squashed)
    return squashed


def _joined(first: Link, second: Link) -> Link:
    if (second.chain, second.after, second.applies_to) != (first.chain, first.step, first.yields):
        raise ChainOrderError(
            f"step {second.step} applies to step {second.after} ({second.applies_to}) of chain {second.chain}, the "
            f"first delta yields step {first.step} ({first.yields}) of chain {first.chain}"
        )
    return Link(first.chain, first.after, second.step, first.applies_to, second.yields)


def _composed(name: str, first: ParameterDelta, second: ParameterDelta) -> ParameterDelta:
    if (first.op, first.shape, first.dtype) != (second.op, second.shape, second.dtype):
        raise ParameterMismatchError(
            f'op "{first.op}" {first.dtype} {first.shape}, then op "{second.op}" {second.dtype} {second.shape}',
            parameter=name,
        )
    return first + second if first.op == "step" else _overwritten(first, second)


def _overwritten(first: ParameterDelta, second: ParameterDelta) -> ParameterDelta:
    """Absolute values at the positions of both, the second's where they meet."""
    indices, slots = torch.unique(torch.cat([first.indices, second.indices]), return_inverse=True)
    values = first.values.new_empty(indices.numel())
    values[slots[: first.nnz]] = first.values
    values[slots[first.nnz :]] = second.values
    return replace(second, indices=indices, values=values)


def _check_op(delta: SparseDelta) -> None:
    if residuals := [name for name, change in delta.items() if change.op == "add"]:
        raise ParameterMismatchError(
            'residuals (op "add") are not composed exactly; rst.convert them', parameter=residuals[0]
        )
    _ = delta.op  # refuses mixtures

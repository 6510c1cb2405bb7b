"""Export of a delta as a dense task vector: a state dict of differences, for tools of task arithmetic."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from rst.checkpoints.checkpoint import Weights, open_checkpoint
from rst.delta.parameter_delta import ParameterDelta
from rst.delta.sparse_delta import SparseDelta
from rst.errors import ConfigError, ParameterMismatchError
from rst.files.atomic import atomic_write
from rst.files.budget import Budget
from rst.files.safetensors_writer import by_width, write_safetensors
from rst.files.weight_index import bytes_of
from rst.interop.not_carried import check_carried
from rst.operations.convert import convert


def to_task_vector(
    delta: SparseDelta | str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    base: Weights | None = None,
    partial: bool = False,
) -> dict[str, str]:
    """Write the residuals `w_sp = wt - w0` (Eq. 16) as dense tensors, one in memory at a time.

    Only changed tensors are in the file; all others would be zeros. Entries of the overlay get the difference, rounded:
    added to the base it comes near, where the delta itself is exact.

    >>> to_task_vector("ar2cl.safetensors", "ar2cl.task_vector.safetensors")

    Args:
        delta: the delta or its file.
        output: a `.safetensors` file to write, atomically.
        base: the weights it was made from, needed only if its op is not "add".
        partial: leave out what has no difference: tensors stored whole, and dtypes without residuals.

    Returns:
        Names of the tensors that were left out, with the reason. Empty unless `partial`.

    Raises:
        ConfigError: the op needs a base, or the tensors would be so much larger than the delta that only a base can
            vouch for their shapes.
        ParameterMismatchError: the base has other shapes.
        NotCarriedError: without `partial`, there are tensors to leave out; or there is nothing else.
        RSTError: as `rst.convert`.
    """
    residuals = convert(delta, op="add", base=base)
    reasons = dict.fromkeys(residuals.dense, "is stored whole")
    reasons |= {name: f"has no residuals ({change.dtype})" for name, change in residuals.items() if change.op != "add"}
    changes = {name: change for name, change in residuals.items() if name not in reasons}
    check_carried(os.fspath(output), reasons, partial, len(changes))
    specs = by_width({name: (change.dtype, change.shape) for name, change in changes.items()})
    _check_shapes(residuals, changes, bytes_of(specs.values()), base)
    with atomic_write(Path(output)) as temporary:
        write_safetensors(temporary, specs, (_dense(changes[name]) for name in specs))
    return reasons


def _check_shapes(
    delta: SparseDelta, changes: Mapping[str, ParameterDelta], dense_bytes: int, base: Weights | None
) -> None:
    """Check the shapes: a file of a few hundred bytes may claim any shape, whose zeros would fill the disk."""
    if base is None:
        if dense_bytes > Budget(delta.nbytes).dense:
            raise ConfigError(
                f"the task vector would take {dense_bytes} bytes, and the delta has {delta.nbytes}; pass its base "
                f"(--base, base=) to confirm the shapes"
            )
        return
    weights = open_checkpoint(base).named_as(delta)
    for name, change in changes.items():
        for present in (one for one in delta.names_of(name) if one in weights):
            if (found := tuple(weights.outline(present).shape)) != change.shape:
                raise ParameterMismatchError(
                    f"{change.shape} does not fit the base's {found}", file=weights.source, parameter=name
                )
            break
        else:
            raise ParameterMismatchError("the base lacks it", file=weights.source, parameter=name)


def _dense(change: ParameterDelta) -> Tensor:
    dense = torch.zeros(change.numel, dtype=change.dtype)
    dense[change.indices.long().cpu()] = change.values.cpu()
    return dense.view(change.shape)

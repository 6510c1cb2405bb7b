"""A change in another form (residuals, tuned values, steps), and the form that packs smallest."""

from collections.abc import Iterable
from typing import get_args

from torch import Tensor

from rst.delta.parameter_delta import Op, ParameterDelta, gather, stored_op
from rst.numerics.fingerprint import digest

_SAMPLE = 1 << 20  # entries that are packed in each form
_ENTRY = 80  # bytes that an array takes in the header of a file

Places = tuple[Tensor, Tensor, Tensor]


def express(name: str, change: ParameterDelta, base: Tensor, op: Op, source: str | None) -> ParameterDelta:
    """Express a change by another operation, on the device of its base.

    Args:
        name: the parameter's name, for messages.
        change: in any form; returned as it is where it already has this one.
        base: w0, whole.
        op: the operation.
        source: origin of the base, for messages.

    Raises:
        WrongBaseError: the base's values are not those that the change was made from.
    """
    if change.op == stored_op(op, change.dtype):
        return change
    return ParameterDelta.at(*_places(name, change, base, source), change.shape, change.base, op)


def smallest_op(changes: Iterable[tuple[str, ParameterDelta, Tensor]], nnz: int, source: str | None) -> Op:
    """Find the operation with which a delta packs smallest, by packing all entries, or a million of them, with each.

    One for all parameters: where each has its own, nine trained deltas are 0.6 % smaller at most (python -m benchmarks
    dense), for which every reader would have to know files of several operations.

    Args:
        changes: name, change in any form, and w0, of each parameter.
        nnz: entries of all.
        source: origin of the base, for messages.

    Returns:
        The operation; of several alike "add", whose deltas can be combined.

    Raises:
        WrongBaseError: the base's values are not those that a change was made from.
    """
    from rst.delta import packed  # and with it pcodec, which `import rst` does without

    every = max(1, -(-nnz // _SAMPLE))
    forms: dict[Op, dict[str, ParameterDelta]] = {op: {} for op in get_args(Op)}
    for name, change, base in changes:
        positions, origin, target = (one[::every].cpu() for one in _places(name, change, base, source))
        for op, sample in forms.items():
            sample[name] = ParameterDelta.at(positions, origin, target, change.shape, None, op)
    streams = {op: packed.to_arrays(sample).values() for op, sample in forms.items()}
    return min(forms, key=lambda op: sum(stream.nbytes + _ENTRY for stream in streams[op]))


def _places(name: str, change: ParameterDelta, base: Tensor, source: str | None) -> Places:
    """Return the positions of a change, int64, and w0 and wt there; of shape (nnz,), on the base's device."""
    change = change.to(base.device)
    positions = change.indices.long()
    origin = gather(base.reshape(-1), positions)
    change.check_touched(name, digest(origin), source)
    return positions, origin, change.tuned_values(origin)

"""The tensors of a base that a change belongs to, under whatever of its tied names the base has them."""

from rst.checkpoints.checkpoint import Checkpoint
from rst.delta.parameter_delta import ParameterDelta
from rst.delta.sparse_delta import SparseDelta
from rst.errors import ParameterMismatchError


def names_in_base(name: str, delta: SparseDelta, base: Checkpoint) -> list[str]:
    """The names that the base has for a changed parameter. Raises `ParameterMismatchError` if there is none."""
    present = [candidate for candidate in delta.names_of(name) if candidate in base]
    if not present:
        raise ParameterMismatchError(f"lacks {name}, which the delta changes", file=base.source)
    return present


def check_fits(name: str, change: ParameterDelta, base: Checkpoint) -> None:
    """Raise `ParameterMismatchError` unless the base's tensor `name` has the shape and dtype of `change`."""
    tensor = base.outline(name)
    if tuple(tensor.shape) != change.shape or tensor.dtype != change.dtype:
        found = f"{tensor.dtype} {tuple(tensor.shape)}"
        raise ParameterMismatchError(
            f"{name} is {found}, the delta is for {change.dtype} {change.shape}", file=base.source
        )

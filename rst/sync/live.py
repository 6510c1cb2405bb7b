"""The weights that take part in sync: all parameters and persistent buffers, tied ones once."""

from collections.abc import Mapping, MutableMapping

from torch import Tensor, nn

from rst.checkpoints.checkpoint import Weights, open_checkpoint
from rst.delta.sparse_delta import CoordinatesName
from rst.errors import ParameterMismatchError
from rst.files.safetensors_writer import TensorSpec

Model = nn.Module | MutableMapping[str, Tensor]


def live_weights(weights: Weights) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the current weights by canonical name, sharing memory if `weights` holds tensors, and their ties.

    Returns:
        `(tensors, tied)`: `tied` maps other names of a tensor to the name it has in `tensors`.
    """
    checkpoint = open_checkpoint(weights)
    own = {name: checkpoint[name].detach() for name in checkpoint if name not in checkpoint.tied}
    return own, dict(checkpoint.tied)


def coordinates_of_weights(weights: Weights) -> CoordinatesName | None:
    """Return the coordinates of the chain's names: for a module, those of its checkpoint files."""
    return "checkpoint" if isinstance(weights, nn.Module) else None


def as_module(model: Model) -> nn.Module:
    """Return a module with these weights: the model itself, or one whose buffers are a state dict's tensors."""
    if isinstance(model, nn.Module):
        return model
    module = nn.Module()
    module._buffers.update(model)  # register_buffer refuses names with dots
    return module


def check_same_specs(found: Mapping[str, TensorSpec], wanted: Mapping[str, TensorSpec], source: str) -> None:
    """Raise `ParameterMismatchError` unless both have the same names, dtypes and shapes."""
    if different := sorted(found.keys() ^ wanted.keys()):
        lacking = f"{source} lacks it" if different[0] in wanted else "the chain lacks it"
        raise ParameterMismatchError(f"{lacking} ({len(different)} such names)", parameter=different[0])
    for name, (dtype, shape) in wanted.items():
        if found[name] != (dtype, shape):
            has = f"{found[name][0]} {found[name][1]}"
            raise ParameterMismatchError(f"{source} has {has}, but the chain has {dtype} {shape}", parameter=name)

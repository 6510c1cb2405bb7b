"""The places of a model's parameters, and which of them an adapter of a Linear layer can change."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from rst.delta.parameter_delta import ParameterDelta
from rst.errors import ParameterMismatchError

_READ_WITHOUT_CALLING = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


@dataclass(frozen=True)
class Place:
    """A parameter as an attribute of a module; tied parameters have several."""

    module_name: str
    module: nn.Module
    parent: nn.Module
    attribute: str


def places_of_parameters(model: nn.Module) -> dict[str, list[Place]]:
    """Map every name of every parameter to all places of that parameter."""
    found: dict[int, list[Place]] = defaultdict(list)
    modules = dict(model.named_modules(remove_duplicate=False))
    for module_name, module in modules.items():
        parent = modules[module_name.rpartition(".")[0]]
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                found[id(parameter)].append(Place(module_name, module, parent, attribute))
    return {name: found[id(parameter)] for name, parameter in model.named_parameters(remove_duplicate=False)}


def obstacle(name: str, change: ParameterDelta, places: Mapping[str, Sequence[Place]]) -> str | None:
    """Return the reason why adapters of Linear layers cannot carry a change; None if they can.

    Raises:
        ParameterMismatchError: the base's parameter has another shape.
    """
    if name not in places:
        return "is no parameter of the base"
    for place in places[name]:
        shape = tuple(place.module.get_parameter(place.attribute).shape)
        if shape != change.shape:
            raise ParameterMismatchError(f"{change.shape} does not fit the base's {shape}", parameter=name)
        if type(place.module) is not nn.Linear or place.attribute != "weight":
            return f"is the {place.attribute} of {type(place.module).__name__} {place.module_name}".rstrip()
        if isinstance(place.parent, _READ_WITHOUT_CALLING):
            return f"is read by {type(place.parent).__name__}, which does not call the layer"
        if not place.module_name:
            return "is in the model itself, not in a layer of it"
    if len(places[name]) > 1:
        return f"is shared by {len(places[name])} layers, and PEFT would merge it once for each"
    return 'has op "replace"' if change.op != "add" else None

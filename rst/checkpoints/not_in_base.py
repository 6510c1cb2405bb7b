"""Parameters that a transformers model did not load from its base's files: a new head, a resized vocabulary.

Base plus delta cannot reproduce their values unless the delta stores them whole: loading the base again initialises
others. The warning comes while this can still be changed.
"""

import re
import warnings
from collections.abc import Collection, Mapping, Set
from typing import Any

from torch import nn

from rst.checkpoints.base_files import names_in_base, shapes_in_base
from rst.checkpoints.coordinates import Coordinates
from rst.checkpoints.transformers_files import coordinates_of
from rst.config import Patterns
from rst.errors import RSTWarning
from rst.naming import matches, plain_name, unwrap

_NAMES_SHOWN = 3


def warn_of_what_base_lacks(model: nn.Module, saved: Set[str], *, stacklevel: int) -> None:
    """Warn (`RSTWarning`) of parameters that the base's files lack, or have in another shape, and no delta will hold.

    Does nothing for a model that is not from transformers, or whose files are not available.

    Args:
        model: the model as loaded, possibly wrapped.
        saved: names, in the model, of the tensors that the delta stores whole.
        stacklevel: as in `warnings.warn`, relative to the caller.
    """
    model = unwrap(model)
    coordinates = coordinates_of(model)
    in_base = frozenset(names_in_base(model)) if coordinates.files else frozenset()
    if in_base.isdisjoint(coordinates.files):  # no files, or files of another model
        return
    parameters = _parameters(model)
    lacking, reshaped = _lacking(model, coordinates, in_base, parameters), _reshaped(model, coordinates, parameters)
    fresh = {first for first, names in parameters.items() if first in lacking or first in reshaped}
    lost = [first for first in parameters if first in fresh and saved.isdisjoint(parameters[first])]
    if not lost:
        return
    said = [reshaped.get(first, first) for first in lost[:_NAMES_SHOWN]]
    more = f" and {len(lost) - _NAMES_SHOWN} more" if len(lost) > _NAMES_SHOWN else ""
    modules = list(dict.fromkeys(_module(first, parameters, fresh) for first in lost))
    warnings.warn(
        f"{len(lost)} of {len(parameters)} parameters are not in the base's files with these names and shapes, so "
        f"loading the base and the delta gives other values: {', '.join(said)}{more}. Set modules_to_save={modules} "
        f"to store them whole, or save the model as it is now and load that folder as the base",
        RSTWarning,
        stacklevel=stacklevel + 1,
    )


def warn_of_what_base_module_lacks(model: nn.Module, modules_to_save: Patterns, *, stacklevel: int) -> None:
    """Do the same for an export that reads `modules_to_save` by the names in the files."""
    coordinates = coordinates_of(model)
    saved = {
        source
        for file in coordinates.files.values()
        for source in file.sources
        if matches(file.name, modules_to_save) or matches(source, modules_to_save)
    }
    warn_of_what_base_lacks(model, saved, stacklevel=stacklevel + 1)


def _parameters(model: nn.Module) -> dict[str, set[str]]:
    """Return all names of each parameter, by its first."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(plain_name(name))
    return {same[0]: set(same) for same in names.values()}


def _lacking(
    model: nn.Module, coordinates: Coordinates, in_base: frozenset[str], parameters: Mapping[str, set[str]]
) -> set[str]:
    """Return the parameters that the files have under none of their names."""
    loaded = {plain_name(name) for name, parameter in model.named_parameters() if _was_loaded(parameter)}
    found = {
        first
        for first, names in parameters.items()
        if first not in loaded
        and not any(in_base.issuperset(coordinates.files_of(name)) for name in names)
        and not any(_is_remade(model, spelled) for name in names for spelled in (name, *coordinates.spellings(name)))
    }
    if not _is_quantised(model):
        return found
    modules = {name.rpartition(".")[0] for name in in_base}  # their files have blocks and scales instead of a weight
    files = {first: coordinates.files_of(first)[0] for first in found}
    return {first for first, file in files.items() if file.rpartition(".")[0] not in modules}


def _reshaped(model: nn.Module, coordinates: Coordinates, parameters: Mapping[str, set[str]]) -> dict[str, str]:
    """Return the parameters that the files have in another shape, with both shapes."""
    if _is_quantised(model):  # packed
        return {}
    shapes, found = shapes_in_base(model), {}
    for first, names in parameters.items():
        files = [
            coordinates.files[name] for own in sorted(names) for name in coordinates.files_of(own) if name in shapes
        ]
        for file in files:
            if not file.computed and len(file.sources) == 1 and shapes[file.name] != file.shape:
                found[first] = f"{first} {_by(file.shape)}, in the files {_by(shapes[file.name])}"
    return found


def _was_loaded(parameter: nn.Parameter) -> bool:
    """Return whether transformers 5 records that it loaded the values: not all names in the files can be predicted."""
    return getattr(parameter, "_is_hf_initialized", False) is True


def _is_remade(model: nn.Module, name: str) -> bool:
    """Return whether transformers computes it from the settings, such as sinusoidal positions, and saves no copy."""
    attributes = ("_keys_to_ignore_on_load_missing", "_keys_to_ignore_on_save")
    return any(
        re.search(pattern, name) for attribute in attributes for pattern in getattr(model, attribute, None) or ()
    )


def _is_quantised(model: Any) -> bool:
    return getattr(model, "hf_quantizer", None) is not None


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _module(name: str, parameters: Mapping[str, Any], fresh: Collection[str]) -> str:
    """Return the largest module around a parameter with only new parameters, by the shortest name that matches it."""
    parts = name.split(".")
    for end in range(1, len(parts)):
        module = ".".join(parts[:end])
        if all(other in fresh for other in parameters if other.startswith(f"{module}.")):
            break
    else:
        module = name
    inside = {other for other in parameters if f"{other}.".startswith(f"{module}.")}
    ends = [".".join(module.split(".")[start:]) for start in reversed(range(module.count(".") + 1))]
    return next(end for end in ends if {other for other in parameters if matches(other, [end])} == inside)

"""The tensors of a transformers model in its checkpoint files, as transformers itself defines them."""

import re
import sys
import weakref
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from rst.checkpoints.base_files import names_in_base
from rst.checkpoints.coordinates import PLAIN, Coordinates, FileTensor, Spellings
from rst.checkpoints.layout_trace import TracedTensor
from rst.naming import other_spellings, plain_name, unwrap


def coordinates_of(module: nn.Module) -> Coordinates:
    """Map a module's tensors to those of its checkpoint files.

    For a transformers model, the tensors are pushed, without elements, through the conversion of `save_pretrained`. Any
    other module has the tensors of its files, at no cost.

    Args:
        module: wrapped or not. The files that it was loaded from may lack the prefix of an added head, have that of a
            removed one, or say `gamma` for `weight`; if they are available, their names are used.
    """
    module = unwrap(module)
    if not _is_transformers_model(module):
        return PLAIN
    saved = module.state_dict(keep_vars=True).items()
    state = {plain_name(name): tensor for name, tensor in saved if isinstance(tensor, Tensor)}
    asked = tuple((name, id(tensor), tensor.shape) for name, tensor in state.items())
    known = _known.get(module)
    if known is None or known[0] != asked:
        known = _known[module] = asked, _ask(module, state)
    return known[1]


def _ask(module: nn.Module, state: Mapping[str, Tensor]) -> Coordinates:
    owners: dict[int, str] = {}
    for name, tensor in state.items():
        owners.setdefault(id(tensor), name)
    own = {name: tensor for name, tensor in state.items() if owners[id(tensor)] == name}
    spellings = partial(other_spellings, prefix=str(getattr(module, "base_model_prefix", "")))
    push = _Push(module, spellings, frozenset(names_in_base(module)))
    found = _trace(push, own)
    if len(own) < len(state):  # some are other names of the same tensors
        others = _trace(push, state)
        found = {**{name: one for name, one in others.items() if set(one.sources).isdisjoint(own)}, **found}
    return Coordinates(found, push, spellings)


# The last result for each model, with its inputs. A long one takes a tenth of a second.
_known: weakref.WeakKeyDictionary[nn.Module, tuple[tuple[object, ...], Coordinates]] = weakref.WeakKeyDictionary()


def _trace(push: "_Push", state: Mapping[str, Tensor]) -> dict[str, FileTensor]:
    made = push({name: TracedTensor.of(name, tensor) for name, tensor in state.items()})
    return {name: _file_tensor(name, one) for name, one in made.items() if isinstance(one, TracedTensor)}


def _file_tensor(name: str, one: TracedTensor) -> FileTensor:
    view = (one.stride(), int(one.storage_offset())) if one.changed and one.is_view else None
    return FileTensor(name, one.sources, tuple(one.shape), one.changed, one.computed, view)


def _is_transformers_model(module: nn.Module) -> bool:
    modeling = sys.modules.get("transformers.modeling_utils")
    return modeling is not None and isinstance(module, modeling.PreTrainedModel)


class _Push:
    """transformers' own conversion for saving, with the names that the base's files have."""

    def __init__(self, module: nn.Module, spellings: Spellings, base_files: frozenset[str]) -> None:
        self._module, self._spellings, self._base_files = weakref.ref(module), spellings, base_files

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = self._revert(dict(tensors))
        prefix = getattr(self._module(), "base_model_prefix", "")
        if prefix and self._base_files and not self._base_files.issuperset(found):
            # As part of the headed model whose files it comes from, which are converted differently.
            headed = self._revert({f"{prefix}.{name}": tensor for name, tensor in tensors.items()})
            if len(self._base_files & headed.keys()) > len(self._base_files & found.keys()):
                return headed
        return found

    def _revert(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {self._name(name): tensor for name, tensor in _revert(self._module(), tensors).items()}

    def _name(self, name: str) -> str:
        if not self._base_files or name in self._base_files:
            return name
        return next((other for other in self._spellings(name) if other in self._base_files), name)


def _revert(module: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # before transformers 5
        return {_old_name(module, name): tensor for name, tensor in tensors.items()}
    reverted: dict[str, Tensor] = revert_weight_conversion(module, tensors)
    return reverted


def _old_name(module: Any, name: str) -> str:
    """Return the name in the files of transformers 4, which renames parts of a few models when loading."""
    for in_file, in_module in getattr(module, "_checkpoint_conversion_mapping", {}).items():
        plain = re.sub(r"\(.*\)", "", in_file.removeprefix("^"))
        renamed, count = re.subn(f"^{in_module}" if in_file.startswith("^") else in_module, plain, name)
        if count:
            return renamed
    return name

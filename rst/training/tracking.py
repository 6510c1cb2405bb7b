"""Which tensors of a module are trained sparsely, which are stored whole, and which are only watched."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from rst.checkpoints.transformers_files import coordinates_of
from rst.config import Patterns, RSTConfig
from rst.delta.parameter_delta import check_carried, check_own_memory, check_real
from rst.errors import ConfigError, ParameterMismatchError
from rst.naming import check_patterns, check_regular, matches, plain_name
from rst.numerics.exactness import RESIDUAL_DTYPES

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class TrackedTensors:
    """The tensors of one module, grouped by how they are trained and stored.

    Attributes:
        sparse: parameters that Residual Sparse Training selects from, by name.
        saved: names of the parameters and buffers of the modules stored whole.
        buffers: names of the other persistent buffers, stored if they change (BatchNorm's statistics).
        frozen: names of the parameters that must not change.
        tied: other names of the same tensors.
    """

    sparse: Mapping[str, nn.Parameter]
    saved: Sequence[str]
    buffers: Sequence[str]
    frozen: Sequence[str]
    tied: Mapping[str, str]


def live_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the current parameters and persistent buffers of a module by plain name, tied ones once."""
    state = model.state_dict(keep_vars=True)
    persistent = {id(tensor) for tensor in state.values()}  # state-dict hooks of an inner wrapper may use other names
    names = {plain_name(name) for name in state}  # or return other tensors
    parameters = {plain_name(name): parameter for name, parameter in model.named_parameters()}
    buffers = {
        plain_name(name): buffer
        for name, buffer in model.named_buffers()
        if id(buffer) in persistent or plain_name(name) in names
    }
    return {**parameters, **buffers}


def track(model: nn.Module, config: RSTConfig) -> TrackedTensors:
    """Group the tensors of `model` according to the configuration.

    Raises:
        ConfigError: a pattern matches nothing, or nothing is left to train sparsely.
        ParameterMismatchError: a parameter to train is complex, not floating point, expanded, without a shape (lazy),
            or on the meta device.
    """
    live = live_tensors(model)
    for name, tensor in live.items():
        if is_lazy(tensor):
            raise ParameterMismatchError(
                "has no shape yet; run the model once on a batch before you create the trainer", parameter=name
            )
    coordinates, tied = coordinates_of(model), _find_tied(model, live)
    aliases: dict[str, list[str]] = {name: [name] for name in live}
    for alias, owner in tied.items():
        aliases[owner].append(alias)
    meant = partial(_meant, names={name: coordinates.files_of(name) for name in live}, aliases=aliases)
    if isinstance(config.target_modules, str) and config.target_modules.lower() == ALL_LINEAR:
        targets = _linear_layers(model, live)
    else:
        targets = meant("target_modules", config.target_modules)
    excluded = meant("exclude_modules", config.exclude_modules)
    chosen = meant("modules_to_save", config.modules_to_save)
    saved = [name for name in live if name in chosen]
    parameters = {name: tensor for name, tensor in live.items() if isinstance(tensor, nn.Parameter)}
    sparse = {
        name: parameter
        for name, parameter in parameters.items()
        if name not in saved
        and parameter.requires_grad
        and (config.target_modules is None or name in targets)
        and name not in excluded
    }
    if not sparse:
        raise ConfigError("no trainable parameter is left to train sparsely; check target_modules and requires_grad")
    for name in saved:
        check_carried(name, live[name])
        check_own_memory(name, live[name])
    for name, parameter in sparse.items():
        check_real(name, parameter)
        check_own_memory(name, parameter)
        if parameter.dtype not in RESIDUAL_DTYPES or parameter.is_meta:
            raise ParameterMismatchError(f"{parameter.dtype} on {parameter.device} cannot be trained", parameter=name)
    return TrackedTensors(
        sparse=sparse,
        saved=saved,
        buffers=[name for name in live if name not in saved and name not in parameters and name not in excluded],
        frozen=[name for name in parameters if name not in saved and name not in sparse],
        tied=tied,
    )


def _meant(
    setting: str, patterns: Patterns, names: Mapping[str, Sequence[str]], aliases: Mapping[str, Sequence[str]]
) -> set[str]:
    """Return the module's names that match the patterns, each by any of its `aliases`.

    A pattern that matches none of them may match those of the files, `names`.

    Raises:
        ConfigError: a pattern matches neither, or in the files only parts of one of the module's tensors.
    """
    check_regular(setting, patterns)
    found = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns or []:
        single: Patterns = pattern if isinstance(patterns, str) else [pattern]
        own = {name for name in names if any(matches(alias, single) for alias in aliases[name])}
        if not own:
            check_patterns(
                setting,
                single,
                [
                    *(own for tied in aliases.values() for own in tied),
                    *(file for files in names.values() for file in files),
                ],
            )
            own = {name for name, files in names.items() if any(matches(file, single) for file in files)}
            for name in own:
                if parts := [file for file in names[name] if not matches(file, single)]:
                    raise ConfigError(
                        f"{setting}: {pattern!r} means a part of it, which is one tensor with {parts[0]} here",
                        parameter=name,
                    )
        found |= own
    return found


def _linear_layers(model: nn.Module, live: Mapping[str, Tensor]) -> set[str]:
    """Return the names of the weights and biases of all linear layers except a language model's output layer."""
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    layers = [
        module
        for module in model.modules()
        if (isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D") and module is not output
    ]
    found = {id(parameter) for layer in layers for parameter in layer.parameters(recurse=False)}
    return {name for name, tensor in live.items() if id(tensor) in found}


def _find_tied(model: nn.Module, owners: Mapping[str, Tensor]) -> dict[str, str]:
    owner_of = {id(tensor): name for name, tensor in owners.items()}
    every_name = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    names = {plain_name(name): owner_of.get(id(tensor)) for name, tensor in every_name}
    return {name: owner for name, owner in names.items() if owner is not None and owner != name}

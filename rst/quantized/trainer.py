"""Training a sparse matrix beside each quantised layer of a support."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from rst.checkpoints.model_config import config_of_module
from rst.checkpoints.transformers_files import coordinates_of
from rst.config import Patterns, RSTConfig
from rst.delta.parameter_delta import ParameterDelta, check_carried, check_no_nan
from rst.delta.sparse_delta import SparseDelta
from rst.errors import ConfigError, NonFiniteError, ParameterMismatchError, RSTWarning
from rst.naming import check_patterns, matches, unwrap
from rst.quantized.beside import SparseBeside
from rst.quantized.layers import QuantizedLinear, quantized_layers
from rst.training.support import Support
from rst.training.support_processes import average_in_backward
from rst.training.tracking import live_tensors
from rst.training.trainer import identity_of

RECORD = "rst.quantized"


def random_support(model: nn.Module, ratio: float, *, seed: int = 0, target_modules: Patterns = None) -> Support:
    """Draw a share of the weights of a model's quantised linear layers, the same weights as on the float model.

    Args:
        model: a model with quantised layers, possibly wrapped.
        ratio: share of the weights of these layers, in (0, 1].
        seed: of the draw.
        target_modules: which of the layers, as in `RSTConfig`; None means all.

    Raises:
        ConfigError: the model has no quantised layer, a pattern matches none, or the ratio is out of range.
    """
    layers = _layers(unwrap(model))
    if target_modules is not None:
        check_patterns("target_modules", target_modules, [*layers])
    shapes = {
        name: one.shape for name, one in layers.items() if target_modules is None or matches(name, target_modules)
    }
    return Support.random_in(shapes, ratio, seed=seed)


class QuantizedTrainer:
    """Trains a support of the quantised linear layers of a model: `y = Q(x) + S x`, S the change that is exported.

    >>> trainer = QuantizedTrainer(model, random_support(model, 0.002), modules_to_save=["classifier"])
    >>> optimizer = torch.optim.AdamW(trainer.parameters(), lr=1e-4)
    >>> ...  # train as always
    >>> trainer.export().save("delta.safetensors")

    S starts at zero and trains in float32, rounded in each forward pass to the dtype that the weights had before, so
    that the exported delta serves the very outputs that were trained. Everything else is frozen. Gradients of several
    processes are averaged in the backward pass.
    """

    def __init__(self, model: nn.Module, support: Support, *, modules_to_save: Sequence[str] | None = None) -> None:
        """Put S beside each layer of the support, and freeze the model's own parameters.

        Args:
            model: a model with quantised layers, possibly wrapped.
            support: of their weights, by their names in the float model: `random_support`, or `Support.from_delta`.
            modules_to_save: modules trained freely and stored whole (a task head); none of them quantised.

        Raises:
            ConfigError: the support names something that is no quantised linear layer, or what `modules_to_save` names
                is quantised or nothing.
            ParameterMismatchError: the support is for another shape.
            WrongBaseError: a delta is on beside one of the layers. Nothing has changed then.
        """
        self.model = unwrap(model)
        layers = _layers(self.model)
        self._config = RSTConfig(select="support", modules_to_save=modules_to_save)
        self._saved = _find_saved(self.model, layers, modules_to_save)
        self._besides = {name: _start(name, layers, support) for name in support}
        for beside in self._besides.values():
            beside.check_alone()
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        for tensor in self._saved.values():
            if isinstance(tensor, nn.Parameter):
                tensor.requires_grad_(True)
        for beside in self._besides.values():
            beside.turn(True)
        average_in_backward([beside.values for beside in self._besides.values()])

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield what an optimiser trains: values of S by the name of the weight, and the modules saved whole."""
        for name, beside in self._besides.items():
            assert isinstance(beside.values, nn.Parameter)
            yield name, beside.values
        for name, tensor in self._saved.items():
            if isinstance(tensor, nn.Parameter):
                yield name, tensor

    def parameters(self) -> Iterator[nn.Parameter]:
        """`named_parameters` without names."""
        return (parameter for _, parameter in self.named_parameters())

    def detach(self) -> None:
        """Have the quantised layers as they were: S is off, and stays in the trainer."""
        for beside in self._besides.values():
            beside.turn(False)

    def export(self) -> SparseDelta:
        """Export the residuals that changed, and the modules saved whole.

        The delta has no digests of its base: there is no float weight to take them of. `delta.base.quantized` says how
        it was quantised.

        Raises:
            NonFiniteError: a value is infinite or NaN; the message names the parameter.
        """
        coordinates = coordinates_of(self.model)
        changes = {name: change for name, one in self._besides.items() if (change := _change(one)).nnz}
        if not changes:
            count = sum(one.positions.numel() for one in self._besides.values())
            warnings.warn(
                f"none of the {count} residuals has moved from 0; was the optimiser made of trainer.parameters()?",
                RSTWarning,
                stacklevel=2,
            )
        for name, tensor in self._saved.items():
            check_no_nan(name, tensor)
        schemes = sorted({one.target.scheme for one in self._besides.values()})
        identity = identity_of(self.model)
        settings = config_of_module(self.model)
        return SparseDelta(
            {coordinates.name_in_files(name): change for name, change in changes.items()},
            dense={coordinates.name_in_files(name): tensor.detach().clone() for name, tensor in self._saved.items()},
            base=replace(
                identity,
                weights=sum(prod(one.target.shape) for one in self._besides.values()),
                quantized="; ".join(schemes),
            ),
            config=self._config.to_dict(),
            coordinates="checkpoint",
            model_config=settings and {key: value for key, value in settings.items() if key != "quantization_config"},
        )

    def state_dict(self) -> dict[str, Any]:
        """Positions and float32 values, to resume; beside the optimiser's state and that of modules saved whole."""
        support = {
            name: {"positions": one.positions, "values": one.values.detach()} for name, one in self._besides.items()
        }
        return {"format": RECORD, "support": support}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            ConfigError: it is none, or of another support; nothing has changed then.
        """
        if not isinstance(state, Mapping) or state.get("format") != RECORD:
            raise ConfigError(f"no state of a QuantizedTrainer, whose format is {RECORD!r}")
        found = state.get("support")
        for name, one in self._besides.items():
            entry = found.get(name) if isinstance(found, Mapping) else None
            if not isinstance(entry, Mapping) or not _fits(entry, one):
                raise ConfigError(f"the state has another support than these {one.positions.numel()}", parameter=name)
        for name, one in self._besides.items():
            one.values.copy_(state["support"][name]["values"])


def _layers(model: nn.Module) -> dict[str, QuantizedLinear]:
    found = quantized_layers(model)
    if not found:
        raise ConfigError(
            "no linear layer quantised by bitsandbytes or torchao is here; of float weights ResidualSparseTrainer "
            "trains a support"
        )
    return found


def _start(name: str, layers: Mapping[str, QuantizedLinear], support: Support) -> SparseBeside:
    if name not in layers:
        raise ConfigError(
            f"{support[name].numel()} weights of the support are here, which is none of the {len(layers)} quantised "
            "linear layers",
            parameter=name,
        )
    target = layers[name]
    if support.shapes[name] != target.shape:
        raise ParameterMismatchError(
            f"the support is for {support.shapes[name]}, the quantised layer has {target.shape}", parameter=name
        )
    device = target.layer.weight.device
    wide = torch.float64 if target.dtype == torch.float64 else torch.float32
    values = nn.Parameter(torch.zeros(support[name].numel(), dtype=wide, device=device))
    return SparseBeside(target, support[name].to(device), values, target.dtype)


def _find_saved(
    model: nn.Module, layers: Mapping[str, QuantizedLinear], patterns: Sequence[str] | None
) -> dict[str, Tensor]:
    if patterns is None:
        return {}
    live = live_tensors(model)
    check_patterns("modules_to_save", patterns, [*live])
    saved = {name: tensor for name, tensor in live.items() if matches(name, patterns)}
    for name, tensor in saved.items():
        if name in layers:
            raise ConfigError(
                f"modules_to_save: quantised by {layers[name].scheme}, so it cannot train", parameter=name
            )
        check_carried(name, tensor)
    return saved


def _change(beside: SparseBeside) -> ParameterDelta:
    values = beside.values.detach().to(beside.dtype)
    if bad := int((~values.isfinite()).sum()):
        raise NonFiniteError(f"{bad} of {values.numel()} residuals are not finite", parameter=beside.target.name)
    moved = values != 0
    positions, values = beside.positions[moved], values[moved]
    return ParameterDelta(positions, values, beside.target.shape, beside.dtype, positions[:0], values[:0], None, "add")


def _fits(entry: Mapping[str, Any], beside: SparseBeside) -> bool:
    positions, values = entry.get("positions"), entry.get("values")
    same = isinstance(positions, Tensor) and torch.equal(positions.cpu(), beside.positions.cpu())
    return same and isinstance(values, Tensor) and values.shape == beside.values.shape

"""Which linear layers of a model are quantised, by whom, and what their weight was before."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rst.errors import ConfigError
from rst.naming import plain_name


@dataclass(frozen=True, eq=False)
class QuantizedLinear:
    """A linear layer whose weight cannot be read as the float matrix that it stands for.

    Attributes:
        name: of the weight, as in the float model.
        layer: the layer.
        dtype: the weight's before it was quantised.
        scheme: who quantised it, and how.
    """

    name: str
    layer: nn.Linear
    dtype: torch.dtype
    scheme: str

    @property
    def shape(self) -> tuple[int, int]:
        """The float weight's: outputs, inputs."""
        return self.layer.out_features, self.layer.in_features


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLinear]:
    """The quantised linear layers of a model, by the name of their weight in the float model.

    Known are bitsandbytes' `Linear4bit` and `Linear8bitLt` (with int8 weights), and linear layers whose weight is one
    of torchao's tensors.

    Raises:
        ConfigError: a layer of bitsandbytes has no quantised weight yet.
    """
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and (known := _scheme(f"{path}.weight", module)) is not None:
            name = plain_name(f"{path}.weight" if path else "weight")
            dtype, scheme = known
            found[name] = QuantizedLinear(name, module, dtype or _float_dtype(model, module), scheme)
    return found


def _scheme(name: str, layer: nn.Linear) -> tuple[torch.dtype | None, str] | None:
    """The weight's dtype before, where it is known, and how it was quantised; None if it was not."""
    weight = layer.weight
    if type(weight).__module__.partition(".")[0] == "torchao":
        return weight.dtype, f"torchao {type(weight).__name__}"
    kinds = {kind.__name__ for kind in type(layer).__mro__ if kind.__module__.partition(".")[0] == "bitsandbytes"}
    if "Linear4bit" in kinds:
        state = getattr(weight, "quant_state", None)
        if state is None:
            raise ConfigError(f"{type(layer).__name__} is not quantised yet: move it to its device", parameter=name)
        nested = ", nested" if state.nested else ""
        dtype = getattr(state, "original_dtype", state.dtype)  # laid out for a CPU's kernel it counts as bfloat16
        return dtype, f"bitsandbytes {state.quant_type}, blocks of {state.blocksize}{nested}"
    if "Linear8bitLt" in kinds and weight.dtype == torch.int8:
        return None, "bitsandbytes int8"
    return None


def _float_dtype(model: nn.Module, layer: nn.Linear) -> torch.dtype:
    """What a layer that does not say it computes in: its bias' dtype, or that of the model's first float parameter."""
    candidates: list[Tensor] = [*layer.parameters(), *model.parameters()]
    return next((one.dtype for one in candidates if one.is_floating_point()), torch.float32)

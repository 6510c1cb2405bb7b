"""The quantised linear layers of a model: by which library, and the dtype of their weight before."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rst.errors import ConfigError
from rst.naming import plain_name


@dataclass(frozen=True, eq=False)
class QuantizedLinear:
    """A linear layer whose weight cannot be read as the float matrix it represents.

    Attributes:
        name: name of the weight, as in the float model.
        layer: the layer.
        dtype: dtype of the weight before quantisation.
        scheme: the library and the method of quantisation.
    """

    name: str
    layer: nn.Linear
    dtype: torch.dtype
    scheme: str

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the float weight: outputs, inputs."""
        return self.layer.out_features, self.layer.in_features


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLinear]:
    """Return the quantised linear layers of a model, by the name of their weight in the float model.

    Supported are bitsandbytes' `Linear4bit` and `Linear8bitLt` (with int8 weights), and linear layers whose weight is a
    tensor of torchao.

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
    """Return the weight's dtype before, if known, and how it was quantised; None if it was not."""
    weight = layer.weight
    if type(weight).__module__.partition(".")[0] == "torchao":
        return weight.dtype, f"torchao {type(weight).__name__}"
    kinds = {kind.__name__ for kind in type(layer).__mro__ if kind.__module__.partition(".")[0] == "bitsandbytes"}
    if "Linear4bit" in kinds:
        state = getattr(weight, "quant_state", None)
        if state is None:
            raise ConfigError(f"{type(layer).__name__} is not quantised yet: move it to its device", parameter=name)
        nested = ", nested" if state.nested else ""
        dtype = getattr(state, "original_dtype", state.dtype)  # in the layout of a CPU kernel it reports bfloat16
        return dtype, f"bitsandbytes {state.quant_type}, blocks of {state.blocksize}{nested}"
    if "Linear8bitLt" in kinds and weight.dtype == torch.int8:
        return None, "bitsandbytes int8"
    return None


def _float_dtype(model: nn.Module, layer: nn.Linear) -> torch.dtype:
    """Return the dtype of a layer that does not record it: that of its bias or of the model's first float parameter."""
    candidates: list[Tensor] = [*layer.parameters(), *model.parameters()]
    return next((one.dtype for one in candidates if one.is_floating_point()), torch.float32)

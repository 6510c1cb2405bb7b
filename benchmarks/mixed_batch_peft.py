"""PEFT's way to serve several adapters in one batch: LoRA layers that accept `adapter_names`."""

import copy
from collections.abc import Sequence

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

_LAYERS = ("c_fc", "c_proj")
WEIGHTS = tuple(f"{layer}.weight" for layer in _LAYERS)
"""How the names of the weights end that it changes."""


def model(base: nn.Module, names: Sequence[str], rank: int = 4) -> PeftModel:
    """A copy of an open_clip image encoder with one LoRA adapter a name on the MLPs' linear layers."""
    config = LoraConfig(r=rank, target_modules=[*_LAYERS], init_lora_weights=False)
    wrapped = get_peft_model(copy.deepcopy(base), config, adapter_name=names[0])
    for name in names[1:]:
        wrapped.add_adapter(name, config)
    return wrapped.eval()

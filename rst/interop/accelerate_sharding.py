"""How a `Trainer`'s parameters are sharded, from its arguments or accelerate's own configuration.

`accelerate launch --use_fsdp`, a configuration file and `ACCELERATE_USE_DEEPSPEED` leave no trace in the arguments.
"""

from collections.abc import Mapping
from typing import Any, Literal

from transformers import TrainingArguments

Sharding = Literal["FSDP", "FSDP2", "DeepSpeed"]


def sharding_of(args: TrainingArguments) -> Sharding | None:
    """Return the kind of sharding; "FSDP" is the first version. None if every process has whole parameters."""
    from accelerate.state import AcceleratorState

    state: Mapping[str, Any] = AcceleratorState._shared_state  # empty before an Accelerator exists; creating one writes
    if args.deepspeed or state.get("deepspeed_plugins") is not None:
        return "DeepSpeed"
    plugin = state.get("fsdp_plugin")
    if plugin is None and not args.fsdp:
        return None
    config: Any = args.fsdp_config or {}
    version = getattr(plugin, "fsdp_version", None) or config.get("version", 1)
    return "FSDP2" if int(version) == 2 else "FSDP"

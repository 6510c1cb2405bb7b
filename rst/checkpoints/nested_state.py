"""Where the weights and a trainer's record lie in a checkpoint that holds more than weights."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

TRAINER_RECORD = "rst-trainer"
RECORD_VERSION = 1
NESTED_UNDER = ("state_dict", "model", "model_state_dict", "module", "app")


def find_state(container: Any) -> Mapping[str, Tensor] | None:
    """The weights, plain or under one of `NESTED_UNDER`, at any depth; None if there are none."""
    if not isinstance(container, Mapping):
        return None
    for key in NESTED_UNDER:
        if isinstance(container.get(key), Mapping) and (nested := find_state(container[key])) is not None:
            return nested
    tensors = {name: value for name, value in container.items() if isinstance(name, str) and isinstance(value, Tensor)}
    return tensors or None


def replace_state(container: Any, state: Mapping[str, Tensor]) -> Any:
    """Copy an unpickled checkpoint with other weights in place of its own, everything else as it was."""
    for key in NESTED_UNDER:
        if isinstance(container.get(key), Mapping) and find_state(container[key]) is not None:
            return {**container, key: replace_state(container[key], state)}
    return {**container, **state}


def find_record(container: Any) -> Mapping[str, Any] | None:
    """What `ResidualSparseTrainer.state_dict` gave, under whatever key."""
    for value in container.values() if isinstance(container, Mapping) else ():
        if isinstance(value, Mapping) and value.get("format") == TRAINER_RECORD:
            return value
    return None

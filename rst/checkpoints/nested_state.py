"""Locating the weights and a trainer's record in a checkpoint that holds more than weights."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from rst.errors import CheckpointError

TRAINER_RECORD = "rst-trainer"
RECORD_VERSION = 2
NESTED_UNDER = ("state_dict", "model", "model_state_dict", "module", "app")
_AVERAGED = re.compile(r"(^|_)(ema|swa|averaged?)(_|$)", re.IGNORECASE)


def path_of_state(container: Any, key: str | None = None) -> list[str]:
    """Return the keys that lead to the weights, each in `NESTED_UNDER` or an average's; empty for a plain state dict.

    Args:
        container: the unpickled object.
        key: selects one of several sets of weights, such as "state_dict_ema".

    Raises:
        CheckpointError: there are several and `key` is None, there is none under `key`, or the object contains itself.
    """
    path: list[str] = []
    known: dict[int, bool] = {}
    above: set[int] = set()
    while sets := _sets(container, known):
        if key not in sets and len(sets) > 1:
            several = f"there are weights under {', '.join(map(repr, sets))}"
            if key is None:
                raise CheckpointError(f"{several}; choose one with --key, --base-key or key=, or save only that one")
            raise CheckpointError(f"no weights under {key!r}; {several}")
        if id(container) in above:
            raise CheckpointError("contains itself")
        above.add(id(container))
        path.append(key if key in sets else sets[0])
        container = container[path[-1]]
    if key is not None and key not in path:
        raise CheckpointError(f"no weights under {key!r}; the checkpoint has weights under {path or 'no key'}")
    return path


def state_at(container: Any, path: Sequence[str]) -> Mapping[str, Tensor] | None:
    """Return the weights at a path; None if there are none."""
    for key in path:
        container = container[key]
    return _tensors(container) or None


def replace_state(container: Any, state: Mapping[str, Tensor], path: Sequence[str]) -> Any:
    """Copy an unpickled checkpoint with other weights at a path, and everything else as it was."""
    if not path:
        return {**container, **state}
    return {**container, path[0]: replace_state(container[path[0]], state, path[1:])}


def find_record(container: Any) -> Mapping[str, Any] | None:
    """Find the result of `ResidualSparseTrainer.state_dict` under any key."""
    for value in container.values() if isinstance(container, Mapping) else ():
        if isinstance(value, Mapping) and value.get("format") == TRAINER_RECORD:
            return value
    return None


def _sets(container: Any, known: dict[int, bool]) -> list[str]:
    """Return the keys that hold weights: the usual ones, and those of averaged weights."""
    if not isinstance(container, Mapping):
        return []
    names = [name for name in container if isinstance(name, str) and (name in NESTED_UNDER or _AVERAGED.search(name))]
    return [name for name in names if isinstance(container[name], Mapping) and _holds_weights(container[name], known)]


def _holds_weights(container: Mapping[str, Any], known: dict[int, bool]) -> bool:
    """Return whether there are weights at any depth. Each mapping is visited once: an untrusted file may share them."""
    if id(container) not in known:
        known[id(container)] = False
        known[id(container)] = bool(_tensors(container)) or bool(_sets(container, known))
    return known[id(container)]


def _tensors(container: Any) -> dict[str, Tensor]:
    if not isinstance(container, Mapping):
        return {}
    return {name: value for name, value in container.items() if isinstance(name, str) and isinstance(value, Tensor)}

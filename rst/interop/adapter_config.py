"""What an untrusted `adapter_config.json` may not make PEFT do: import, read elsewhere, or take memory without end."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rst.errors import CheckpointError
from rst.files.strict_json import parse_json

_FILE = "adapter_config.json"
# PEFT imports the module that `megatron_core` names, X-LoRA reads the folders that `adapters` names, and replicated
# layers are no change of the base's weights.
_REFUSED = ("megatron_config", "adapters", "layer_replication")
_RANKS = (
    "r",
    "init_r",
    "target_r",
    "rank_pattern",
    "n_frequency",
    "oft_block_size",
    "boft_block_size",
    "num_virtual_tokens",
)


def check_adapter_config(folder: Path) -> None:
    """Look at a configuration before PEFT does.

    Raises:
        CheckpointError: there is none, it is no JSON object, it asks for what a delta cannot be made from, or for ranks
            larger than the folder's files.
    """
    path = folder / _FILE
    if not path.is_file():
        raise CheckpointError(f"no folder of a PEFT adapter, which has an {_FILE}", file=folder)
    try:
        config = parse_json(path.read_bytes())
        largest = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot be read ({error})", file=path) from error
    if not isinstance(config, dict):
        raise CheckpointError("no JSON object", file=path)
    for key in _REFUSED:
        if config.get(key):
            raise CheckpointError(f"has {key}, which is not followed", file=path)
    for key in _RANKS:
        if any(number > largest for number in _numbers(config.get(key))):
            raise CheckpointError(f"{key} is larger than the {largest} bytes of the adapter", file=path)


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, (int, float)):
        yield value
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from (item,) if isinstance(item, (int, float)) else ()

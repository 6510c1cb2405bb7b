"""Checks that an untrusted `adapter_config.json` makes PEFT neither import, nor read elsewhere, nor exhaust memory."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from rst.errors import CheckpointError, ConfigError
from rst.files.strict_json import parse_json
from rst.limited_pattern import check_quick

_WEIGHTS = "adapter_model.safetensors"
_FILE = "adapter_config.json"
# PEFT imports the module named by `megatron_core`, X-LoRA reads the folders named by `adapters`, and replicated
# layers are not a change of the base's weights.
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
_PATTERNS = ("target_modules", "exclude_modules", "feedforward_modules")  # patterns if they are strings, not lists
_ALWAYS_PATTERNS = ("layers_pattern", "rank_pattern", "alpha_pattern")  # and their keys
_FREE_ELEMENTS = 1 << 24
_MOST_PATTERNS = 1000  # each is matched against each module


def check_adapter_config(folder: Path, shapes: Sequence[tuple[int, ...]]) -> None:
    """Check a configuration before PEFT reads it.

    Args:
        folder: folder of the adapter.
        shapes: of the base's parameters. Factors of a rank that all of them had must not be larger than twice the base.

    Raises:
        CheckpointError: there is none, it is not a JSON object, it uses what a delta cannot represent, has ranks larger
            than the folder's tensors, or a pattern that could take too long.
    """
    path = folder / _FILE
    if not path.is_file():
        raise CheckpointError(f"not the folder of a PEFT adapter, which contains an {_FILE}", file=folder)
    try:
        config = parse_json(path.read_bytes())
        largest = _largest_size(folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot be read ({error})", file=path) from error
    if not isinstance(config, dict):
        raise CheckpointError("not a JSON object", file=path)
    for key in _REFUSED:
        if config.get(key):
            raise CheckpointError(f"sets {key}, which is not supported", file=path)
    weights = sum(map(math.prod, shapes))
    edges = sum(shape[0] + math.prod(shape[1:]) for shape in shapes if len(shape) > 1)
    for key in _RANKS:
        rank = max(_numbers(config.get(key)), default=0)
        if rank > largest:
            raise CheckpointError(f"{key} is larger than {largest}, the largest size of its tensors", file=path)
        if rank * edges > _FREE_ELEMENTS + 2 * weights:
            raise CheckpointError(
                f"{key} {rank} is too large for the base: up to {rank * edges} numbers for {weights} weights", file=path
            )
    try:
        for key in (*_PATTERNS, *_ALWAYS_PATTERNS):
            for pattern in _patterns(key, config.get(key)):
                check_quick(key, pattern)
    except ConfigError as error:
        raise CheckpointError(error.reason, file=path) from error


def _largest_size(folder: Path) -> int:
    """Return the largest dimension of a stored tensor, which bounds any rank; the files' size if none is known."""
    try:
        with safe_open(folder / _WEIGHTS, framework="np") as file:
            return max((size for name in file.keys() for size in file.get_slice(name).get_shape()), default=0)  # noqa: SIM118
    except (SafetensorError, OSError):  # another kind of weights, or damaged ones (PEFT reports those)
        return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())


def _patterns(key: str, value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if key not in _ALWAYS_PATTERNS or not isinstance(value, (list, dict)):
        return []
    if len(value) > _MOST_PATTERNS:
        raise ConfigError(f"{key}: {len(value)} patterns; at most {_MOST_PATTERNS} are allowed")
    return [pattern for pattern in value if isinstance(pattern, str)]


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, (int, float)):
        yield value
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from (item,) if isinstance(item, (int, float)) else ()

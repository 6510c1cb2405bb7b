"""The streaming writer's files are safetensors files, with every tensor where readers expect it."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from rst import CheckpointError
from rst.files.safetensors_writer import by_width, write_safetensors
from rst.numerics.exactness import bit_equal
from tests.refusal import refused

STATE = {
    "a": torch.ones(3, dtype=torch.bfloat16),
    "b": torch.arange(5.0, dtype=torch.float64),
    "c": torch.tensor([True, False, True]),
    "d": torch.randn(2, 3).t(),
    "e": torch.empty(0, 4),
    "f": torch.tensor(7),
}


def test_tensors_come_back_and_start_at_multiples_of_their_width(tmp_path: Path) -> None:
    specs = by_width({name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in STATE.items()})
    write_safetensors(tmp_path / "a.safetensors", specs, (STATE[name] for name in specs))
    loaded = load_file(tmp_path / "a.safetensors")
    assert loaded.keys() == STATE.keys()
    assert all(bit_equal(loaded[name], tensor.contiguous()) for name, tensor in STATE.items())
    content = (tmp_path / "a.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    assert header.pop("__metadata__") == {"format": "pt"}
    for name, entry in header.items():
        assert (8 + size + entry["data_offsets"][0]) % STATE[name].element_size() == 0


def test_a_dtype_that_the_format_lacks_is_named(tmp_path: Path) -> None:
    with refused(CheckpointError, "torch.complex128", parameter="phase"):
        write_safetensors(tmp_path / "a.safetensors", {"phase": (torch.complex128, (1,))}, [])

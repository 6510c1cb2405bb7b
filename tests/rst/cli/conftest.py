"""Running `rst` in this process and as installed, and weights to run it on."""

import json
import subprocess
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rst.cli import main

State = dict[str, Tensor]
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INSTALLED = Path(sysconfig.get_path("scripts")) / "rst"


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def rst(tmp_path, monkeypatch, capsys) -> Callable[..., Ran]:
    """Run the command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def run(*words: object) -> Ran:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture
def installed(tmp_path) -> Callable[..., Ran]:
    """Run the installed script in a process of its own, in an empty folder."""

    def run(*words: object) -> Ran:
        done = subprocess.run([INSTALLED, *map(str, words)], cwd=tmp_path, capture_output=True, text=True, timeout=300)
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


def weights(dtype: torch.dtype, seed: int = 0) -> State:
    """A small base of one dtype, with what is awkward: signed zeros, subnormals, 0-d and empty tensors, a buffer."""
    draw = torch.Generator().manual_seed(seed)
    kernel = torch.randn(7, 5, generator=draw, dtype=torch.float64).to(dtype)
    kernel[0, :4] = torch.tensor([0.0, -0.0, torch.finfo(dtype).tiny / 2, torch.finfo(dtype).max], dtype=dtype)
    return {
        "stem.weight": kernel,
        "stem.bias": torch.randn(7, generator=draw, dtype=torch.float64).to(dtype),
        "norm.num_batches_tracked": torch.tensor(3),
        "scale": torch.tensor(0.5, dtype=dtype),
        "nothing": torch.empty(0, 3, dtype=dtype),
        "untouched.weight": torch.randn(4, 4, generator=draw, dtype=torch.float64).to(dtype),
    }


def tune(base: State, seed: int = 1) -> State:
    """Change some weights by much and some by one bit, flip signs, and count a batch."""
    draw = torch.Generator().manual_seed(seed)
    tuned = {name: tensor.clone() for name, tensor in base.items()}
    for name in ("stem.weight", "stem.bias"):
        flat = tuned[name].view(-1)
        flat[1::4] = torch.randn(len(flat[1::4]), generator=draw, dtype=torch.float64).to(flat.dtype)
        flat[2::4] = torch.nextafter(flat[2::4], torch.zeros_like(flat[2::4]))
        flat[0] = -flat[0]
    tuned["scale"] *= -3
    tuned["norm.num_batches_tracked"] += 10
    return tuned


def same_bytes(left: State, right: State) -> bool:
    """Whether two sets of weights agree in every name, dtype, shape and byte."""
    return left.keys() == right.keys() and all(
        (left[name].dtype, left[name].shape) == (right[name].dtype, right[name].shape)
        and torch.equal(_bytes(left[name]), _bytes(right[name]))
        for name in left
    )


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def read(path: Path) -> State:
    """Weights of a plain `.pt` or a `.safetensors` file, read without this library."""
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


@pytest.fixture
def pair(tmp_path) -> tuple[State, State]:
    """Float32 weights in `base.pt` and `tuned.pt`."""
    base = weights(torch.float32)
    tuned = tune(base)
    torch.save(base, tmp_path / "base.pt")
    torch.save(tuned, tmp_path / "tuned.pt")
    return base, tuned


@pytest.fixture
def delta(pair, rst, tmp_path) -> Path:
    """`base.pt`, `tuned.pt`, and the delta between them."""
    assert rst("export", "tuned.pt", "--base", "base.pt").code == 0
    return tmp_path / "tuned.delta.safetensors"


def save_sharded(state: State, folder: Path) -> Path:
    """Write two shards and their index, as transformers does."""
    names = list(state)
    shards = {"model-1-of-2.safetensors": names[::2], "model-2-of-2.safetensors": names[1::2]}
    for file_name, members in shards.items():
        save_file({name: state[name] for name in members}, folder / file_name)
    weight_map = {name: file_name for file_name, members in shards.items() for name in members}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its contents, hidden ones included."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def is_one_sentence(ran: Ran) -> bool:
    """Whether a run was refused as it should be: code 2, one line on stderr, nothing on stdout."""
    one_line = ran.err.startswith("error: ") and ran.err.count("\n") == 1 and ran.err.endswith("\n")
    return ran.code == 2 and one_line and not ran.out

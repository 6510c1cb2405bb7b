"""A chain of deltas with one file altered: the pointer, a delta, an anchor."""

import json
import random
import shutil
import warnings
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import torch
from torch import Tensor

from rst.files.strict_json import to_json
from rst.numerics.exactness import bit_equal
from rst.numerics.fingerprint import digest_text
from rst.sync import Follower, Publisher, verify
from rst.sync.anchor import read_anchor
from rst.sync.chain import read_delta, read_pointer
from rst.sync.store import FolderStore
from tests.fuzz.json_mutation import Pairs, dump, mutate_json, parse
from tests.fuzz.safetensors_mutation import mutate_safetensors, mutate_text
from tests.fuzz.target import FuzzError, Target

_DELTA, _ANCHOR = "delta-0000000003.safetensors", "anchor-0000000002.safetensors"
State = dict[str, Tensor]


def _state(step: int) -> State:
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(size, generator=generator).bfloat16() for name, size in (("a", 40), ("b", 7))}
    for number in range(step):
        state["a"][3 * number : 3 * number + 5] *= 1.01
        state["b"][number % 7] += 1
    return state


@cache
def _chain() -> Path:
    folder = Path(mkdtemp(prefix="rst-fuzz-chain-"))
    live = _state(0)
    publisher = Publisher(live, folder, anchor_every=2)
    for step in range(1, 4):
        for name, tensor in _state(step).items():
            live[name].copy_(tensor)
        publisher.publish()
    return folder


def prepare(folder: Path) -> None:
    shutil.copytree(_chain(), folder, dirs_exist_ok=True)


def _seed(name: str) -> list[bytes]:
    return [(_chain() / name).read_bytes()]


def mutate_pointer(rng: random.Random, data: bytes) -> bytes:
    """Change it and make its digest right again, where that can be done."""
    try:
        record = parse(data.decode())
        for _ in range(rng.choice([1, 1, 2])):
            mutate_json(rng, record)
        plain = json.loads(dump(Pairs((key, value) for key, value in record if key != "digest")))
        return to_json(plain | {"digest": digest_text(to_json(plain))}).encode()
    except (ValueError, TypeError, RecursionError):
        return mutate_text(rng, data)


def follow(path: Path) -> None:
    """All or nothing: a follower that is refused stays as it was, and one that is not has the chain's own weights."""
    followed = _state(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # damage that an anchor makes good
        try:
            reached = Follower(followed, path.parent).update().step
        except BaseException:
            steps = [step for step in range(4) if _same(followed, _state(step))]
            if not steps:
                raise FuzzError("the model is at no step of the chain") from None
            raise
        pointer = read_pointer(FolderStore(path.parent))
        if reached != pointer.step:
            raise FuzzError("did not reach the last step")
        verify(path.parent)


def _same(left: State, right: State) -> bool:
    return all(bit_equal(left[name], right[name]) for name in right)


def _read_pointer(path: Path) -> Path:
    read_pointer(FolderStore(path.parent))
    return path


def _read_delta(path: Path) -> Path:
    read_delta(FolderStore(path.parent), 3)
    return path


def _read_anchor(path: Path) -> Path:
    read_anchor(FolderStore(path.parent), 2)
    return path


def _target(name: str, file_name: str, mutate: object, read: object) -> Target:
    return Target(name, file_name, lambda: _seed(file_name), mutate, read, follow, prepare)  # type: ignore[arg-type]


POINTER = _target("sync_pointer", "latest.json", mutate_pointer, _read_pointer)
DELTA = _target("sync_delta", _DELTA, mutate_safetensors, _read_delta)
ANCHOR = _target("sync_anchor", _ANCHOR, mutate_safetensors, _read_anchor)

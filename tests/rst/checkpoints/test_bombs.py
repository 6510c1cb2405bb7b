"""Small pickles that ask for much: refused before their instructions are followed, honest ones are not."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rst import CheckpointError, ResidualSparseTrainer, RSTConfig, export, open_checkpoint
from tests.refusal import refused

_HASH = (1 << 61) - 1


def write(path: Path, pickle: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in {"data.pkl": pickle, "version": b"3\n", "byteorder": b"little"}.items():
            archive.writestr(f"archive/{name}", content)
    return path


def nested_tuples(levels: int) -> bytes:
    """A dict whose key is a pair of a pair of a pair, each the same one twice."""
    pairs = b"".join(b"q" + bytes([level]) + b"h" + bytes([level]) + b"\x86" for level in range(levels))
    return b"\x80\x02})" + pairs + b"K\x01s."


def integer(number: int) -> bytes:
    digits = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(digits)]) + digits


def colliding_integers(count: int) -> bytes:
    return b"\x80\x02}(" + b"".join(integer(number * _HASH) + b"K\x01" for number in range(count)) + b"u."


def one_long_tuple_as_key_again_and_again(count: int) -> bytes:
    return b"\x80\x02(" + b"K\x01" * count + b"tq\x000}(" + b"h\x00K\x01" * count + b"u."


def pairs_as_keys(count: int) -> bytes:
    return b"\x80\x02}(" + b"".join(b"J" + n.to_bytes(4, "little") + b"K\x00\x86K\x01" for n in range(count)) + b"u."


def pairs(count: int) -> bytes:
    return b"".join(b"J" + n.to_bytes(4, "little") + b"K\x00\x86" for n in range(count))


def called(name: bytes, items: bytes) -> bytes:
    """One call on a list of the items."""
    return b"\x80\x02c" + name + b"\n](" + items + b"e\x85R."


def called_again_and_again(name: bytes, items: bytes, calls: int) -> bytes:
    """The same call on the same list."""
    return b"\x80\x02c" + name + b"\nq\x00](" + items + b"e\x85q\x01](" + b"h\x00h\x01R" * calls + b"e."


def a_call_of_a_call(name: bytes, calls: int) -> bytes:
    """Each takes the one before, and so copies it; what it takes grows by no byte of the file."""
    first = b"\x80\x02](c" + name + b"\nq\x00](" + b"".join(map(integer, range(1000))) + b"e\x85Rq\x01"
    return first + b"h\x00h\x01\x85Rq\x01" * calls + b"e."


def built_again_and_again(calls: int) -> bytes:
    """Dicts whose attributes are the items of one and the same dict."""
    state = b"}q\x01(" + b"".join(b"J" + n.to_bytes(4, "little") + b"K\x01" for n in range(5000)) + b"u0"
    return b"\x80\x02ccollections\nOrderedDict\nq\x00" + state + b"](" + b"h\x00)Rh\x01b" * calls + b"e."


def immense_bytes(_: int) -> bytes:
    return b"\x80\x02cbuiltins\nbytearray\n" + integer(1 << 40) + b"\x85R."


@pytest.mark.parametrize(
    "bomb",
    [
        nested_tuples(60),
        colliding_integers(20_000),
        one_long_tuple_as_key_again_and_again(20_000),
        pairs_as_keys(20_000),
        called(b"builtins\nset", pairs(20_000)),
        called(b"collections\nOrderedDict", b"".join(pair + b"K\x01\x86" for pair in [pairs(1)] * 20_000)),
        called_again_and_again(b"builtins\nset", b"".join(map(integer, range(5000))), 5000),
        called_again_and_again(b"builtins\nset", b"".join(integer(n * _HASH) for n in range(500)), 5000),
        a_call_of_a_call(b"collections\nCounter", 20_000),
        built_again_and_again(5000),
        b"\x80\x04\x8f(" + pairs(20_000) + b"\x90.",
        b"\x80\x04(" + pairs(20_000) + b"\x91.",
        b"\x80\x02(" + b"".join(pair + b"K\x01" for pair in [pairs(1)] * 20_000) + b"d.",
        immense_bytes(0),
    ],
    ids=[
        *("nested tuples", "colliding integers", "one long key", "pairs", "set", "ordered", "set again and again"),
        *("colliding again and again", "a call of a call", "build", "additems", "frozenset", "dict", "bytearray"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_whose_keys_take_for_ever_is_refused(tmp_path: Path, bomb: bytes, zipped: bool) -> None:
    path = tmp_path / "x.pt"
    if zipped:
        write(path, bomb)
    else:  # before torch 1.6: a number, a protocol, the sizes of the system, the content, keys
        torch.save({}, path, _use_new_zipfile_serialization=False)
        whole = path.read_bytes()
        path.write_bytes(whole[: whole.index(b"\x80\x02}q\x00.")] + bomb + b"\x80\x02].")
    with refused(CheckpointError, "steps" if b"bytearray" not in bomb else "bytearray", file=path):
        open_checkpoint(path)


@pytest.mark.parametrize("name", [b"torch._utils\n_rebuild_tensor_v2", b"torch._utils\n_rebuild_qtensor"])
def test_a_tensor_that_reaches_beyond_its_file_is_refused(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / "x.pt"
    torch.save({"w": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes().replace(b"torch._utils\n_rebuild_tensor_v2", name)
    assert b"K\x03\x85" in whole
    path.write_bytes(whole.replace(b"K\x03\x85", integer(1 << 40) + b"\x85"))
    with refused(CheckpointError, f"{1 << 40}", name.decode().split()[1], file=path):
        open_checkpoint(path)


@pytest.mark.parametrize("sizes", [[1 << 40], [1 << 14, 1 << 14, 1 << 14]])
def test_a_tensor_of_nothing_but_its_size_is_refused(tmp_path: Path, sizes: list[int]) -> None:
    call = b"\x80\x02ctorch\nFloatTensor\n(" + b"".join(map(integer, sizes)) + b"tR."
    with refused(CheckpointError, "FloatTensor", file=tmp_path / "x.pt"):
        open_checkpoint(write(tmp_path / "x.pt", call + b"\0" * (1 << 15)))


class Wide(torch.Tensor):
    """A class of tensors, which is rebuilt by a function of a function."""


def test_a_tensor_of_a_class_that_reaches_beyond_its_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"w": torch.ones(3).as_subclass(Wide)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"K\x03\x85", integer(1 << 40) + b"\x85"))
    with refused(CheckpointError, f"{1 << 40}", "_rebuild_from_type_v2", file=path):
        open_checkpoint(path)


def test_a_compressed_member_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.pt", b"\x80\x02](" + b"]" * 1_000_000 + b"e.", zipfile.ZIP_DEFLATED)
    with refused(CheckpointError, "data.pkl", file=path):
        open_checkpoint(path)


def test_honest_keys_are_read(tmp_path: Path) -> None:
    content = {
        "state_dict": {"w": torch.ones(2)},
        "seen": {(1, 2): 3, 1 << 70: 4},
        "times": list(range(1 << 60, (1 << 60) + 9000)),
        "pairs": [(n, n) for n in range(20_000)],
        "epochs": set(range(20_000)),
    }
    for zipped in (True, False):
        torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
        assert list(open_checkpoint(tmp_path / "x.pt")) == ["w"]


def shared(levels: int, twice: Callable[[Any], Any]) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = twice(value)
    return value


@pytest.mark.parametrize("twice", [lambda value: [value, value], lambda value: {"a": value, "b": value}])
@pytest.mark.parametrize("place", ["config", "places"])
def test_settings_that_share_are_counted_as_often_as_they_are_reached(tmp_path: Path, twice: Any, place: str) -> None:
    trainer = ResidualSparseTrainer(torch.nn.Linear(2, 2), RSTConfig(threshold=1e-6))
    record = trainer.state_dict()
    bomb = shared(50, twice)
    record |= {"config": {"x": bomb}} if place == "config" else {"places": {"x": ["w", [1], [1], bomb]}}
    torch.save({"state_dict": trainer.model.state_dict(), "rst": record}, tmp_path / "x.ckpt")
    with refused(CheckpointError, file=tmp_path / "x.ckpt"):
        export(None, tmp_path / "x.ckpt")


def test_weights_shared_under_all_keys_are_found_once(tmp_path: Path) -> None:
    nested: Any = {"w": 1}
    for _ in range(60):
        nested = dict.fromkeys(("state_dict", "model", "model_state_dict", "module", "app"), nested)
    torch.save(nested, tmp_path / "x.pt")
    with refused(CheckpointError, file=tmp_path / "x.pt"):
        open_checkpoint(tmp_path / "x.pt")

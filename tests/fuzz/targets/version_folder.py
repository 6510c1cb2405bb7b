"""The record of a versioned checkpoint."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from rst.sync import Version, read_version, write_version
from tests.fuzz.safetensors_mutation import mutate_text
from tests.fuzz.target import FuzzError, Target

_RECORD = "0000000001/version.json"


def prepare(folder: Path) -> None:
    write_version(folder, 1, {"w": torch.ones(3)})


def seeds() -> list[bytes]:
    with TemporaryDirectory() as folder:
        prepare(Path(folder))
        return [(Path(folder) / _RECORD).read_bytes()]


def read(path: Path) -> Version:
    return read_version(path.parent.parent, 1)


def use(version: Version) -> None:
    if version.path.parent.name != "0000000001" or not isinstance(version.checksum, str):
        raise FuzzError(f"{version}")
    if version.base_version is not None and type(version.base_version) is not int:
        raise FuzzError(f"{version}")


RECORD = Target("version_folder", _RECORD, seeds, mutate_text, read, use, prepare)

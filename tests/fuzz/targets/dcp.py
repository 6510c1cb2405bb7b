"""Folders of torch.distributed.checkpoint: the pickled metadata, and the file that they point into."""

import random
import warnings
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from torch.distributed import checkpoint

from rst.checkpoints.checkpoint import Checkpoint
from tests.fuzz.pickle_mutation import mutate_pickle
from tests.fuzz.target import Target
from tests.fuzz.targets import weights
from tests.fuzz.targets.delta import tuned

_METADATA, _DATA = ".metadata", "__0_0.distcp"


def prepare(folder: Path) -> None:
    """What one process saves."""
    state = {"model": tuned(), "optimizer": {"lr": 0.1, "steps": [1, 2]}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there is no process group
        checkpoint.save(state, checkpoint_id=folder)


def seeds(name: str) -> list[bytes]:
    with TemporaryDirectory() as folder:
        prepare(Path(folder))
        return [(Path(folder) / name).read_bytes()]


def mutate_data(rng: random.Random, data: bytes) -> bytes:
    """Alter pickles inside, and keep the length, which the metadata know."""
    return mutate_pickle(rng, data)[: len(data)].ljust(len(data), b"\0")


def read(path: Path) -> Checkpoint:
    return weights.read(path.parent)


METADATA = Target("dcp_metadata", _METADATA, partial(seeds, _METADATA), mutate_pickle, read, weights.use, prepare)
DATA = Target("dcp_data", _DATA, partial(seeds, _DATA), mutate_data, read, weights.use, prepare)

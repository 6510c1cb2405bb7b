"""A `.safetensors` checkpoint: opened, read tensor by tensor, compared, merged."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors.torch import save_file

from rst import export, merge, open_checkpoint
from rst.checkpoints.checkpoint import Checkpoint
from tests.fuzz.safetensors_mutation import mutate_safetensors
from tests.fuzz.target import Target
from tests.fuzz.targets.delta import base, tuned


def seeds() -> Iterator[bytes]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        for state in (base(), {"module." + name: tensor for name, tensor in tuned().items()}):
            save_file({name: tensor.clone() for name, tensor in state.items()}, path, {"format": "pt"})
            yield path.read_bytes()


def read(path: Path) -> Checkpoint:
    checkpoint = open_checkpoint(path)
    for name in checkpoint:
        checkpoint[name]
    return checkpoint


def use(checkpoint: Checkpoint) -> None:
    """Compare it and merge with it, as base and as tuned weights."""
    export(base(), checkpoint.source, exclude_modules=["small"])
    delta = export(checkpoint.source, tuned())
    with TemporaryDirectory() as folder:
        merge(checkpoint.source, delta, Path(folder) / "merged.safetensors")


SAFETENSORS = Target("safetensors", "x.safetensors", lambda: list(seeds()), mutate_safetensors, read, use)

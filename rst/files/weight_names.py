"""Names of weight files in the folders of transformers and diffusers, with or without a variant (fp16)."""

import re
from dataclasses import dataclass
from pathlib import Path

from rst.errors import CheckpointError

PIPELINE = "model_index.json"
"""Index file of a diffusers pipeline: a folder of models, each in a folder of its own."""
_STEMS = ("model", "diffusion_pytorch_model", "pytorch_model")
_VARIANT = r"(?:\.([A-Za-z0-9_]+))?"
_FILE = re.compile(rf"({'|'.join(_STEMS)}){_VARIANT}\.(safetensors|bin)(?:\.index{_VARIANT}\.json)?")
_OURS = ("delta", "merged")  # files that the command line writes beside a model's weights


@dataclass(frozen=True)
class WeightNames:
    """The names of one model's files.

    >>> WeightNames("model", "fp16").shard(1, 2)
    'model.fp16-00001-of-00002.safetensors'
    """

    stem: str = "model"
    variant: str | None = None

    @property
    def single(self) -> str:
        """The name of one file with all weights."""
        return f"{self._start}.safetensors"

    @property
    def index(self) -> str:
        """The name of the index of shards."""
        variant = f"{self.variant}." if self.variant else ""
        return f"{self.stem}.safetensors.index.{variant}json"

    def shard(self, number: int, count: int) -> str:
        """The name of one of several files."""
        return f"{self._start}-{number:05}-of-{count:05}.safetensors"

    @property
    def _start(self) -> str:
        return f"{self.stem}.{self.variant}" if self.variant else self.stem


def is_index(name: str) -> bool:
    """Return whether a file name is that of an index of shards."""
    return name.endswith(".index.json") or bool((found := _FILE.fullmatch(name)) and ".index." in found[0])


def names_like(file: str) -> WeightNames:
    """Return the file names of a model whose weights, or their index, are called `file`; the usual ones otherwise."""
    if not (found := _FILE.fullmatch(file)):
        return WeightNames()
    return WeightNames("model" if found[1] == "pytorch_model" else found[1], found[2] or found[4])


def find_weights(folder: Path, others: tuple[str, ...] = ()) -> Path:
    """Return the file of a model folder that holds its weights, or their index: safetensors first, variants last.

    Args:
        folder: a folder of transformers, or one model of diffusers.
        others: other file names to accept, before a variant's.

    Raises:
        CheckpointError: there is none, or there are several variants.
    """
    ranked: dict[str, tuple[bool, ...]] = {}
    variants: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        found = _FILE.fullmatch(path.name)
        if not found or not path.is_file():
            continue
        variant = found[2] or found[4]
        if variant in _OURS:
            continue
        ranked[path.name] = variant is not None, found[3] != "safetensors", found[1] != "model", not is_index(path.name)
        if variant:
            variants.setdefault(variant, path.name)
    best = min(ranked, key=ranked.__getitem__, default=None)
    if best and not ranked[best][0]:
        return folder / best
    for name in others:
        if (folder / name).is_file():
            return folder / name
    if best is None:
        known = ", ".join([*(f"{stem}.safetensors" for stem in _STEMS[:2]), "pytorch_model.bin", *others])
        raise CheckpointError(f"the folder has none of {known}, nor an index of shards", file=folder)
    if len(variants) > 1:
        raise CheckpointError(
            f"contains only the variants {', '.join(sorted(variants))} of the weights; pass the file itself, such as "
            f"{min(variants.values())}",
            file=folder,
        )
    return folder / best


def components(pipeline: Path) -> dict[str, Path]:
    """Return the weight files of a pipeline's models, or their indices, by the name of the model's folder.

    Raises:
        CheckpointError: no folder in it has weights.
    """
    found = {}
    for folder in sorted(path for path in pipeline.iterdir() if path.is_dir()):
        try:
            found[folder.name] = find_weights(folder)
        except CheckpointError:
            if any(_FILE.fullmatch(path.name) for path in folder.iterdir()):  # several variants
                raise
    if not found:
        raise CheckpointError("is a pipeline, but none of its folders contains weights", file=pipeline)
    return found

"""A merged model as a folder of shards, which appears completely or not at all, and which a killed merge resumes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile

from rst.checkpoints.checkpoint import checkpoint_files, weights_file
from rst.checkpoints.model_config import CONFIG
from rst.errors import ParameterMismatchError
from rst.files.partial_folder import PartialFolder, job_digest
from rst.files.safetensors_writer import TensorSpec, by_width, write_safetensors
from rst.files.weight_index import bytes_of, index_text, plan_shards
from rst.files.weight_names import PIPELINE, components, is_index, names_like
from rst.operations.extraction import Progress, shifted
from rst.operations.merged_config import merged_config
from rst.operations.merged_tensors import MergedTensors

_COMPANIONS = {".json", ".txt", ".model", ".jinja", ".py"}  # settings, tokenizer and code, which loading needs


@dataclass(frozen=True)
class _Part:
    """One model: a whole model folder, or a pipeline's model in a folder of its own.

    Attributes:
        folder: its name, empty for the output folder itself.
        names: names of its tensors, mapped to the name in a file.
        shards: its files, with the names of their tensors.
        index: the index file, if there are several shards.
    """

    folder: str
    names: dict[str, str]
    shards: dict[str, list[str]]
    index: str | None


def merge_into_folder(
    merged: MergedTensors, base: Path, output: Path, largest: int, on_progress: Progress | None
) -> None:
    """Write the weights under the names that the base's files have, in shards of at most `largest` bytes of tensors.

    The settings and tokenizer are copied from a base folder, or those of every model from a pipeline of diffusers. What
    an earlier process finished from the same base and delta is kept; see `PartialFolder`.

    Raises:
        ParameterMismatchError: a new tensor belongs to no model of the pipeline.
    """
    specs = merged.specs()
    total, done = bytes_of(specs.values()), 0
    parts = list(_parts(merged, base, specs, largest))
    weights = checkpoint_files(base)
    companions = _companions(base, weights, [part.folder for part in parts if part.folder])
    layout = [[part.folder, part.names, part.shards] for part in parts]
    job = job_digest(["merge", merged.delta.digest(), layout], [*weights, *companions.values()])
    indices = [part.index for part in parts if part.index]
    files = [file for part in parts for file in part.shards]
    with PartialFolder(output, job, [*files, *indices, *companions]) as partial:
        for part in parts:
            for file, names in part.shards.items():
                chosen = by_width({name: specs[name] for name in names})
                after = done + bytes_of(chosen.values())
                if not partial.has(file):
                    named = {part.names[name]: spec for name, spec in chosen.items()}
                    tensors = merged.stream(chosen, shifted(on_progress, done, total))
                    write_safetensors(partial.path / file, named, tensors, merged.metadata(part.folder))
                    partial.finish(file)
                elif on_progress:
                    on_progress(after, total)
                done = after
            if part.index:
                inside = {Path(file).name: [part.names[name] for name in names] for file, names in part.shards.items()}
                size = bytes_of(specs[name] for name in part.names)
                (partial.path / part.index).write_text(index_text(inside, size))
                partial.finish(part.index)
        for file, companion in companions.items():
            if not partial.has(file):
                if file == CONFIG:
                    (partial.path / file).write_text(merged_config(base, merged), encoding="utf-8")
                else:
                    copyfile(companion, partial.path / file)
                partial.finish(file)
        partial.publish()


def _parts(merged: MergedTensors, base: Path, specs: dict[str, TensorSpec], largest: int) -> Iterator[_Part]:
    own = components(base) if merged.base.parts else {"": weights_file(base)}
    found: dict[str, dict[str, str]] = {folder: {} for folder in own}
    for name in specs:
        folder, in_file = merged.place(name)
        if folder not in found:
            raise ParameterMismatchError(f"belongs to none of {', '.join(found)}", file=base, parameter=name)
        found[folder][name] = in_file
    for folder, names in found.items():
        files, start = names_like(own[folder].name), f"{folder}/" if folder else ""
        plan = plan_shards({name: specs[name] for name in names}, largest, files)
        shards = {start + file: inside for file, inside in plan.items()}
        yield _Part(folder, names, shards, start + files.index if len(shards) > 1 else None)


def _companions(base: Path, weights: Sequence[Path], models: Sequence[str]) -> dict[str, Path]:
    """Return the files beside a folder's weights that belong to the model, by output name; none for a single file.

    Of its subfolders, only a pipeline's count, with those of schedulers and tokenizers.
    """
    if not base.is_dir():
        return {}
    folders = [base, *(path for path in sorted(base.iterdir()) if models and path.is_dir())]
    files = [path for folder in folders for path in sorted(folder.iterdir()) if path.is_file()]
    plain = [path for path in files if path.suffix in _COMPANIONS and not path.name.startswith(".")]
    kept = [path for path in plain if path.name == PIPELINE or not (path in weights or is_index(path.name))]
    return {path.relative_to(base).as_posix(): path for path in kept}

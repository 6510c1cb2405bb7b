"""A merged model as a folder of shards, which appears whole or not at all, and which a killed merge continues."""

from collections.abc import Sequence
from pathlib import Path
from shutil import copyfile

from rst.checkpoints.checkpoint import checkpoint_files
from rst.checkpoints.model_config import CONFIG
from rst.files.partial_folder import PartialFolder, job_digest
from rst.files.safetensors_writer import by_width, write_safetensors
from rst.files.weight_index import INDEX, bytes_of, index_text, plan_shards
from rst.operations.extraction import Progress, shifted
from rst.operations.merged_config import merged_config
from rst.operations.merged_tensors import MergedTensors

_COMPANIONS = {".json", ".txt", ".model", ".jinja", ".py"}  # settings, tokenizer and code, without which none loads


def merge_into_folder(
    merged: MergedTensors, base: Path, output: Path, largest: int, on_progress: Progress | None
) -> None:
    """Write `model.safetensors`, or shards of at most `largest` bytes of tensors and their index.

    A base that is a folder lends its settings and tokenizer. What an earlier process finished from the same base and
    delta is kept; see `PartialFolder`.
    """
    specs = merged.specs()
    total, done = bytes_of(specs.values()), 0
    plan = plan_shards(specs, largest)
    shards = {file: [merged.original(name) for name in names] for file, names in plan.items()}
    weights = checkpoint_files(base)
    companions = {path.name: path for path in _companions(base, weights)}
    job = job_digest(["merge", merged.delta.digest(), shards], [*weights, *companions.values()])
    with PartialFolder(output, job, [*plan, INDEX, *companions]) as partial:
        for file, names in plan.items():
            part = by_width({name: specs[name] for name in names})
            after = done + bytes_of(part.values())
            if not partial.has(file):
                named = {merged.original(name): spec for name, spec in part.items()}
                write_safetensors(partial.path / file, named, merged.stream(part, shifted(on_progress, done, total)))
                partial.finish(file)
            elif on_progress:
                on_progress(after, total)
            done = after
        if len(plan) > 1:
            (partial.path / INDEX).write_text(index_text(shards, total))
            partial.finish(INDEX)
        for file, companion in companions.items():
            if not partial.has(file):
                if file == CONFIG:
                    (partial.path / file).write_text(merged_config(base, merged), encoding="utf-8")
                else:
                    copyfile(companion, partial.path / file)
                partial.finish(file)
        partial.publish()


def _companions(base: Path, weights: Sequence[Path]) -> list[Path]:
    """What lies beside a folder's weights and belongs to the model, sorted; none for a file, none from subfolders."""
    files = sorted(base.iterdir()) if base.is_dir() else []
    plain = [path for path in files if path.suffix in _COMPANIONS and path.is_file() and path not in weights]
    return [path for path in plain if not path.name.startswith(".") and not path.name.endswith(".index.json")]

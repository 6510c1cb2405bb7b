"""Export of a delta from two sets of weights, or from one training checkpoint that remembers its base."""

import os
from collections import ChainMap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from rst.checkpoints.checkpoint import RECORD_FILE, Checkpoint, Weights, checkpoint_files, open_checkpoint
from rst.checkpoints.trainer_record import TrainerRecord, read_trainer_record
from rst.config import Patterns, RSTConfig
from rst.delta.parameter_delta import Op
from rst.delta.sparse_delta import BaseIdentity, Encoding, SparseDelta
from rst.errors import CheckpointError, ConfigError, ParameterMismatchError
from rst.files.partial_folder import job_digest
from rst.naming import check_patterns, matches
from rst.operations.extraction import Extraction, Progress
from rst.operations.resumable_export import export_in_parts

BATCHNORM_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
_NAMES_SHOWN = 3


def export(
    base: Weights | None,
    tuned: Weights,
    *,
    threshold: float | None = None,
    modules_to_save: Sequence[str] | None = None,
    exclude_modules: Patterns = None,
    op: Op = "add",
    on_progress: Progress | None = None,
    output: str | os.PathLike[str] | None = None,
    encoding: Encoding = "coo",
) -> SparseDelta:
    """Extract what turns `base` into `tuned`, reading one pair of tensors at a time.

    >>> export("base.safetensors", "tuned.safetensors", threshold=1e-6).save("delta.safetensors")
    >>> export("base/", "tuned/", output="delta.safetensors")  # of huge ones; if it is killed, the same call goes on

    Args:
        base: file, folder, state dict or module (see `open_checkpoint`). None takes the base that a
            `ResidualSparseTrainer` left in the checkpoint `tuned`.
        tuned: the same kinds.
        threshold: tau of Eq. 17, for parameters only, not for BatchNorm's statistics. None keeps every changed bit,
            or with `base=None` what the trainer's own tau keeps.
        modules_to_save: modules stored whole, as in `RSTConfig`; what the base lacks always is. With `base=None`
            the trainer's own.
        exclude_modules: left as the base has them, as in `RSTConfig`; `tuned` may lack them.
        op: what to store: residuals ("add"), the tuned values ("replace") or steps, as in `ParameterDelta`.
        on_progress: called after each tensor with bytes done and bytes in all.
        output: where to save the delta as well. From files, what is compared is kept in `output.partial` every few
            gigabytes until the delta is saved, and used again unless an input, a setting or this library has changed.
        encoding: of the saved delta, as in `SparseDelta.save`.

    Raises:
        ConfigError: a threshold that is negative or not finite, a pattern that matches nothing or needs a base.
        CheckpointError: unreadable weights, or `base=None` and no trainer's record.
        ParameterMismatchError: `tuned` lacks a tensor, or shapes or dtypes differ.
        NonFiniteError: `tuned` has a NaN.
    """
    if threshold is not None:
        RSTConfig(threshold=threshold)  # refuses what is no threshold
    if base is None:
        if modules_to_save or exclude_modules:
            raise ConfigError("modules_to_save and exclude_modules need a base; without one the trainer's own hold")
        extraction = _from_record(open_checkpoint(tuned), threshold, op)
    else:
        settings = {"threshold": threshold, "modules_to_save": modules_to_save, "exclude_modules": exclude_modules}
        extraction = _from_two(open_checkpoint(base), open_checkpoint(tuned), settings, op)
    if output is None:
        return extraction.run(on_progress)
    inputs = [tuned] if base is None else [tuned, base]
    paths = [weights for weights in inputs if isinstance(weights, str | os.PathLike)]
    if len(paths) == len(inputs):
        job = job_digest(["export", dict(extraction.config), extraction.threshold, op], _files(paths))
        return export_in_parts(extraction, job, Path(output), encoding, on_progress)
    delta = extraction.run(on_progress)
    delta.save(output, encoding)
    return delta


def _files(weights: Sequence[str | os.PathLike[str]]) -> list[Path]:
    return [file for path in weights for file in checkpoint_files(path)]


def _from_two(base: Checkpoint, tuned: Checkpoint, settings: Mapping[str, Any], op: Op) -> Extraction:
    """Plan the export of two sets of weights."""
    whole, exclude = settings["modules_to_save"], settings["exclude_modules"]
    check_patterns("modules_to_save", whole, [*tuned, *base])
    check_patterns("exclude_modules", exclude, [*tuned, *base])
    tied = _common_ties(base, tuned)
    _check_complete(base, tuned, tied, exclude)
    names = [name for name in tuned if name not in tied and not matches(name, exclude)]
    return Extraction(
        base=base,
        tuned=tuned,
        names=names,
        whole={name for name in names if name not in base or matches(name, whole)},
        buffers={name for name in names if name.rpartition(".")[2] in BATCHNORM_BUFFERS},
        tied=tied,
        threshold=settings["threshold"],
        identity=BaseIdentity(name=Path(base.source).name),
        config={name: value for name, value in settings.items() if value is not None},
        op=op,
        source=tuned.source,
        coordinates=base.coordinates if base.coordinates == tuned.coordinates else None,
    )


def _from_record(tuned: Checkpoint, threshold: float | None, op: Op) -> Extraction:
    """Plan the export of a checkpoint that holds `ResidualSparseTrainer.state_dict()` beside the weights."""
    record = tuned.record
    if record is None:
        raise CheckpointError(
            f"no base in the checkpoint (a trainer's state_dict() in it or in {RECORD_FILE} beside it "
            "would bring one); name the base weights with --base or the argument base",
            file=tuned.source,
        )
    try:
        read = read_trainer_record(record, tuned.source)
    except ConfigError as error:
        raise CheckpointError(error.reason, file=error.file) from error
    return _planned(tuned, read, threshold, op)


def _planned(tuned: Checkpoint, record: TrainerRecord, threshold: float | None, op: Op) -> Extraction:
    base: Mapping[str, Tensor] = ChainMap(record.base, record.buffers)  # type: ignore[arg-type]  # only read, when asked
    names = [*record.base, *record.buffers, *record.saved]
    tuned = tuned.named_as(names).in_files(record.places)
    missing = [name for name in names if name not in tuned]
    if missing:
        raise ParameterMismatchError(f"lacks {_shown(missing)}, which the trainer's record names", file=tuned.source)
    return Extraction(
        base=base,
        tuned=tuned,
        names=names,
        whole=set(record.saved),
        buffers=set(record.buffers),
        tied=record.tied,
        threshold=record.threshold if threshold is None else threshold,
        identity=BaseIdentity(record.name, record.revision),
        config=record.config,
        op=op,
        source=tuned.source,
        coordinates=record.coordinates,
    )


def _common_ties(base: Checkpoint, tuned: Checkpoint) -> dict[str, str]:
    """Ties that hold on both sides; a name that one side leaves out counts as tied there."""
    ties = {alias: owner for alias, owner in tuned.tied.items() if alias not in base or base.tied.get(alias) == owner}
    left_out = {alias: owner for alias, owner in base.tied.items() if alias not in tuned and owner in tuned}
    return ties | left_out


def _check_complete(base: Checkpoint, tuned: Checkpoint, tied: Mapping[str, str], exclude: Patterns) -> None:
    missing = [name for name in base if name not in tuned and name not in tied and not matches(name, exclude)]
    if missing:
        raise ParameterMismatchError(
            f"lacks {_shown(missing)} of {base.source}; exclude what is to stay as the base has it", file=tuned.source
        )


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"{', '.join(names[:_NAMES_SHOWN])}{more}"

"""Export of a delta from two sets of weights, or from one training checkpoint that contains its base."""

import os
import warnings
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rst.checkpoints.cast import open_cast
from rst.checkpoints.checkpoint import RECORD_FILE, Checkpoint, Weights, checkpoint_files, open_checkpoint
from rst.checkpoints.model_config import tuned_config
from rst.checkpoints.not_in_base import warn_of_what_base_module_lacks
from rst.checkpoints.trainer_record import TrainerRecord, read_trainer_record
from rst.config import Patterns, RSTConfig, Selection
from rst.delta.parameter_delta import WantedOp
from rst.delta.sparse_delta import BaseIdentity, Encoding, SparseDelta
from rst.errors import CheckpointError, ConfigError, ParameterMismatchError, RSTWarning
from rst.files.partial_folder import job_digest
from rst.naming import check_patterns, is_bias, matches
from rst.numerics.kept_places import KeptPlaces
from rst.operations.extraction import Extraction, Progress
from rst.operations.resumable_export import export_in_parts
from rst.operations.stored_twice import stored_twice
from rst.operations.top_share import FAR, has_residuals, keep_top_share
from rst.operations.tuned_checks import check_forms

BATCHNORM_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
_NAMES_SHOWN = 3
_RULE = ("threshold", "ratio", "select")


def export(
    base: Weights | None,
    tuned: Weights,
    *,
    threshold: float | None = None,
    ratio: float | None = None,
    select: Selection | None = None,
    modules_to_save: Sequence[str] | None = None,
    exclude_modules: Patterns = None,
    key: str | None = None,
    base_key: str | None = None,
    dtype: torch.dtype | None = None,
    op: WantedOp = "add",
    on_progress: Progress | None = None,
    output: str | os.PathLike[str] | None = None,
    encoding: Encoding = "coo",
) -> SparseDelta:
    """Extract the change from `base` to `tuned`, reading one pair of tensors at a time.

    >>> export("base.safetensors", "tuned.safetensors", ratio=0.002).save("delta.safetensors")
    >>> export("base/", "tuned/", output="delta.safetensors")  # for huge ones; if it is killed, the same call resumes

    Args:
        base: file, folder, state dict or module (see `open_checkpoint`). None takes the base that a
            `ResidualSparseTrainer` left in the checkpoint `tuned`.
        tuned: the same kinds.
        threshold: tau of Eq. 17, for parameters only, not for BatchNorm's statistics. With neither `threshold` nor
            `ratio` nor `select` every changed bit is kept, or with `base=None` what the trainer's own rule keeps.
        ratio: the share of all parameters' weights that is kept, exactly: those that changed most (App. M). The
            checkpoints are read three times for it.
        select: which of the two, "threshold" or "top", as given, or "bias": what is no bias stays as the base has it.
            "top" alone keeps `rst.config.DEFAULT_RATIO`.
        modules_to_save: modules stored whole, as in `RSTConfig`; what the base lacks always is. With `base=None`
            the trainer's own.
        exclude_modules: left as the base has them, as in `RSTConfig`; `tuned` may lack them.
        key: which of several sets of weights in `tuned` is meant, such as "state_dict_ema".
        base_key: the same of `base`.
        dtype: of a base in another dtype: the tuned floats are cast to it first, which rounds them and raises an
            `RSTWarning`. Base plus delta is then the cast weights, bit for bit.
        op: what to store: residuals ("add"), the tuned values ("replace") or steps ("step"), as in `ParameterDelta`, or
            "smallest", whichever of them takes the fewest bytes with the encoding "packed". Residuals alone can be
            combined and scaled, or added to a base in another dtype; steps mean something on their own base alone.
        on_progress: called after each tensor with bytes done and bytes in all.
        output: where to save the delta as well. From files, what is compared is kept in `output.partial` every few
            gigabytes until the delta is saved, and used again unless an input, a setting or this library has changed.
        encoding: of the saved delta, as in `SparseDelta.save`.

    Raises:
        ConfigError: a threshold that is negative or not finite, a ratio outside (0, 1], a selection that does not go
            with them, or has no meaning here ("support"), a pattern that matches nothing or needs a base.
        CheckpointError: unreadable weights, several sets of them without a key, or `base=None` and no trainer's record.
        ParameterMismatchError: `tuned` lacks a tensor, or shapes or dtypes differ.
        NonFiniteError: `tuned` has a NaN.
    """
    rule = _rule(threshold, ratio, select)
    before = None
    if base is None:
        if modules_to_save or exclude_modules or dtype:
            raise ConfigError(
                "modules_to_save, exclude_modules and dtype need a base; without one, the trainer's settings apply"
            )
        extraction, rule = _from_record(open_checkpoint(tuned, key), rule, op)
    else:
        settings = {**rule, "modules_to_save": modules_to_save, "exclude_modules": exclude_modules}
        opened = open_checkpoint(tuned, key) if dtype is None else open_cast(tuned, dtype, key)
        before = open_checkpoint(base, base_key)
        extraction = from_two(before, opened, settings, op)
        if isinstance(base, nn.Module):
            warn_of_what_base_module_lacks(base, modules_to_save, stacklevel=2)
    if rule.get("select") == "bias":
        extraction = replace(extraction, left={name for name in extraction.parameters() if not is_bias(name)})
    if before is not None:
        check_forms(extraction, before, may_cast=dtype is None)
    if (share := rule.get("ratio")) is not None:
        extraction, on_progress, changed = keep_top_share(extraction, share, on_progress)
        if base is None and threshold is None and ratio is None and select is None:
            _warn_of_cut(extraction, share, changed)
    if output is None:
        return extraction.run(on_progress)
    inputs = [tuned] if base is None else [tuned, base]
    paths = [weights for weights in inputs if isinstance(weights, str | os.PathLike)]
    if len(paths) == len(inputs):
        settled = [dict(extraction.config), extraction.threshold, extraction.ties, op, str(dtype), key, base_key]
        job = job_digest(["export", *settled], _files(paths))
        return export_in_parts(extraction, job, Path(output), encoding, on_progress)
    delta = extraction.run(on_progress)
    delta.save(output, encoding)
    return delta


def _warn_of_cut(extraction: Extraction, share: float, changed: int) -> None:
    """Warn that a checkpoint of a running training has more changes than its record's own rule keeps."""
    outlines = map(extraction.outline, extraction.parameters())
    kept = round(share * sum(outline.numel() for outline in outlines if has_residuals(outline)))
    if changed > FAR * kept:
        warnings.warn(
            f"{extraction.source}: {changed:,} weights differ from w0, but the export keeps {kept:,}, by "
            f"the record's ratio={share:g}: "
            "the share had not yet fallen that far, so a score of the checkpoint does not hold for the delta; "
            "threshold=0 (--threshold 0) keeps all weights that differ",
            RSTWarning,
            stacklevel=3,
        )


def _rule(threshold: float | None, ratio: float | None, select: Selection | None) -> dict[str, Any]:
    """Return the checked settings among the three that select what is kept; none if every changed bit is kept."""
    if threshold is None and ratio is None and select is None:
        return {}
    if select == "support" or callable(threshold) or callable(ratio):
        raise ConfigError(
            f"select={select!r}, threshold={threshold}, ratio={ratio}: these need the training "
            f"itself, not only its result"
        )
    settings = RSTConfig(threshold=threshold, ratio=ratio, select=select).to_dict()
    kept: dict[str, Any] = {name: settings[name] for name in _RULE[:2] if name in settings}
    return kept if settings["select"] == "threshold" else {"select": settings["select"], **kept}


def _files(weights: Sequence[str | os.PathLike[str]]) -> list[Path]:
    return [file for path in weights for file in checkpoint_files(path)]


def from_two(base: Checkpoint, tuned: Checkpoint, settings: Mapping[str, Any], op: WantedOp) -> Extraction:
    """Plan the export of two sets of weights. Raises as `export`."""
    tuned = tuned.named_as(base)
    whole, exclude = settings["modules_to_save"], settings["exclude_modules"]
    check_patterns("modules_to_save", whole, [*tuned, *base])
    check_patterns("exclude_modules", exclude, [*tuned, *base])
    tied = _common_ties(base, tuned)
    twins, apart = stored_twice(base, tuned)
    for alias, owner in twins.items():
        first, other = tied.get(owner, owner), tied.get(alias, alias)
        if first != other:  # not known to be the same yet
            tied |= {name: first for name, known in tied.items() if known == other} | {other: first}
    excluded = _meant(exclude, [*tuned, *base], tied)
    chosen = _meant(whole, [*tuned, *base], tied)
    _check_complete(base, tuned, tied, excluded)
    names = [name for name in tuned if name not in tied and name not in excluded]
    return Extraction(
        base=base,
        tuned=tuned,
        names=names,
        whole={name for name in names if name not in base or name in chosen},
        buffers={name for name in names if name.rpartition(".")[2] in BATCHNORM_BUFFERS},
        tied=tied,
        threshold=settings.get("threshold"),
        identity=BaseIdentity(name=Path(base.source).name),
        config={name: value for name, value in settings.items() if value is not None},
        op=op,
        kept=apart | {name for pair in base.tied.items() if pair[0] not in tied for name in pair},
        source=tuned.source,
        coordinates=base.coordinates if base.coordinates == tuned.coordinates else None,
        model_config=_other_config(base, tuned, exclude),
    )


def _shape(weights: Checkpoint, name: str) -> torch.Size | None:
    return weights.outline(name).shape if name in weights else None


def _from_record(tuned: Checkpoint, rule: dict[str, Any], op: WantedOp) -> tuple[Extraction, dict[str, Any]]:
    """Plan the export of a checkpoint that holds `ResidualSparseTrainer.state_dict()` with the weights.

    Its own rule applies unless another is given.
    """
    record = tuned.record
    if record is None:
        raise CheckpointError(
            f"the checkpoint contains no base (a trainer's state_dict() in it, or in {RECORD_FILE} next to it, "
            f"would provide one); pass the base weights with --base or the argument base",
            file=tuned.source,
        )
    try:
        read = read_trainer_record(record, tuned.source)
    except ConfigError as error:
        raise CheckpointError(error.reason, file=error.file) from error
    config = read.config
    if rule:
        config = {name: value for name, value in config.items() if name not in _RULE} | rule
    else:
        rule = _rule(read.threshold, read.ratio, "bias" if config.get("select") == "bias" else None)
    return _planned(tuned, read, rule.get("threshold"), config, op), rule


def _planned(
    tuned: Checkpoint, record: TrainerRecord, threshold: float | None, config: Mapping[str, Any], op: WantedOp
) -> Extraction:
    names = [*record.base, *record.kept, *record.buffers, *record.saved]
    tuned = tuned.named_as(names).in_files(record.places)
    missing = [name for name in names if name not in tuned]
    if missing:
        raise ParameterMismatchError(f"lacks {_shown(missing)}, which the trainer's record names", file=tuned.source)
    kept = _KeptBase(record.kept, tuned)
    base: Mapping[str, Tensor] = ChainMap(record.base, record.buffers, kept)  # type: ignore[arg-type]  # only read
    stamps = dict.fromkeys(base, tuned.record_stamp) if tuned.record_stamp else {}
    return Extraction(
        base=Checkpoint(tuned.source, {name: name for name in base}, base.__getitem__, stamps=stamps),
        tuned=tuned,
        names=names,
        whole=set(record.saved),
        buffers=set(record.buffers),
        tied=record.tied,
        threshold=threshold,
        identity=BaseIdentity(record.name, record.revision),
        config=config,
        op=op,
        source=tuned.source,
        coordinates=record.coordinates,
        model_config=tuned.model_config,
    )


class _KeptBase(Mapping[str, Tensor]):
    """w0, built from tuned weights on access. Raises `ParameterMismatchError` for places that do not fit them."""

    def __init__(self, kept: Mapping[str, KeptPlaces], tuned: Mapping[str, Tensor]) -> None:
        self._kept, self._tuned = kept, tuned

    def __getitem__(self, name: str) -> Tensor:
        places, weight = self._kept[name], self._tuned[name]
        places.check(name, weight)
        return places.rebuild(weight)

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)


def _other_config(base: Checkpoint, tuned: Checkpoint, exclude: Patterns) -> Mapping[str, Any] | None:
    """Return the tuned model's settings, unless they are the base's, or those of tensors that are left out."""
    left_out = [name for name in (*base, *tuned) if matches(name, exclude)] if exclude else []
    if any(_shape(base, name) != _shape(tuned, name) for name in left_out):
        return None
    if base.model_config is None or tuned.model_config is None:
        return tuned.model_config
    followed = tuned_config(base.model_config, tuned.model_config)
    return None if followed == base.model_config else tuned.model_config


def _common_ties(base: Checkpoint, tuned: Checkpoint) -> dict[str, str]:
    """Return the ties that hold on both sides; a name that one side leaves out counts as tied there."""
    ties = {alias: owner for alias, owner in tuned.tied.items() if alias not in base or base.tied.get(alias) == owner}
    left_out = {alias: owner for alias, owner in base.tied.items() if alias not in tuned and owner in tuned}
    return ties | left_out


def _meant(patterns: Patterns, names: Iterable[str], tied: Mapping[str, str]) -> set[str]:
    """Return the names that match the patterns, each under any of the names it is tied to."""
    matched = {name for name in names if matches(name, patterns)}
    return matched | {tied[name] for name in matched if name in tied}


def _check_complete(base: Checkpoint, tuned: Checkpoint, tied: Mapping[str, str], excluded: set[str]) -> None:
    missing = [name for name in base if name not in tuned and name not in tied and name not in excluded]
    if missing:
        raise ParameterMismatchError(
            f"lacks {_shown(missing)} of {base.source}; exclude the tensors that should keep the base's values",
            file=tuned.source,
        )


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"{', '.join(names[:_NAMES_SHOWN])}{more}"

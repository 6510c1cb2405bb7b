"""Export of a delta from two sets of weights, or from one training checkpoint that remembers its base."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from rst.checkpoints import RECORD_FILE, RECORD_VERSION, Checkpoint, Weights, open_checkpoint
from rst.config import Patterns, RSTConfig
from rst.delta import BaseIdentity, SparseDelta
from rst.errors import CheckpointError, ConfigError, ParameterMismatchError
from rst.extraction import Extraction, Progress
from rst.naming import check_patterns, matches
from rst.parameter_delta import Op

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
) -> SparseDelta:
    """Extract what turns `base` into `tuned`, reading one pair of tensors at a time.

    >>> export("base.safetensors", "tuned.safetensors", threshold=1e-6).save("delta.safetensors")

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

    Raises:
        ConfigError: a threshold that is negative or not finite, a pattern that matches nothing or needs a base.
        CheckpointError: unreadable weights, or `base=None` and no trainer's record.
        ParameterMismatchError: `tuned` lacks a tensor, or shapes or dtypes differ.
        NonFiniteError: `tuned` has a NaN.
    """
    if threshold is not None:
        RSTConfig(threshold=threshold)  # refuses what is no threshold
    tuned_weights = open_checkpoint(tuned)
    if base is None:
        if modules_to_save or exclude_modules:
            raise ConfigError("modules_to_save and exclude_modules need a base; without one the trainer's own hold")
        return _from_record(tuned_weights, threshold, op).run(on_progress)
    base_weights = open_checkpoint(base)
    every_name = [*tuned_weights, *base_weights]
    check_patterns("modules_to_save", modules_to_save, every_name)
    check_patterns("exclude_modules", exclude_modules, every_name)
    tied = _common_ties(base_weights, tuned_weights)
    _check_complete(base_weights, tuned_weights, tied, exclude_modules)
    names = [name for name in tuned_weights if name not in tied and not matches(name, exclude_modules)]
    settings = {"threshold": threshold, "modules_to_save": modules_to_save, "exclude_modules": exclude_modules}
    return Extraction(
        base=base_weights,
        tuned=tuned_weights,
        names=names,
        whole={name for name in names if name not in base_weights or matches(name, modules_to_save)},
        buffers={name for name in names if name.rpartition(".")[2] in BATCHNORM_BUFFERS},
        tied=tied,
        threshold=threshold,
        identity=BaseIdentity(name=Path(base_weights.source).name),
        config={name: value for name, value in settings.items() if value is not None},
        op=op,
        source=tuned_weights.source,
    ).run(on_progress)


def _from_record(tuned: Checkpoint, threshold: float | None, op: Op) -> Extraction:
    """Plan the export of a checkpoint that holds `ResidualSparseTrainer.state_dict()` beside the weights."""
    record = tuned.record
    if record is None:
        raise CheckpointError(
            f"{tuned.source}: no base in the checkpoint (a trainer's state_dict() in it or in {RECORD_FILE} beside it "
            "would bring one); name the base weights with --base or the argument base"
        )
    if record.get("version") != RECORD_VERSION:
        found = record.get("version")
        raise CheckpointError(
            f"{tuned.source}: the trainer's record has version {found}; this library reads {RECORD_VERSION}"
        )
    try:
        return _planned(tuned, record, threshold, op)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{tuned.source}: the trainer's record in it is malformed ({reason})") from error


def _planned(tuned: Checkpoint, record: Mapping[str, Any], threshold: float | None, op: Op) -> Extraction:
    tau = record["threshold"] if threshold is None else threshold
    base: dict[str, Tensor] = {**record["base"], **record["buffers"]}
    names = [*base, *record["saved"]]
    tuned = tuned.named_as(names)
    missing = [name for name in names if name not in tuned]
    if missing:
        raise ParameterMismatchError(f"{tuned.source}: lacks {_shown(missing)}, which the trainer's record names")
    identity: Mapping[str, Any] = record["identity"]
    return Extraction(
        base=base,
        tuned=tuned,
        names=names,
        whole=set(record["saved"]),
        buffers=set(record["buffers"]),
        tied=record["tied"],
        threshold=None if tau is None else float(tau),
        identity=BaseIdentity(identity["name"], identity["revision"]),
        config=record["config"],
        op=op,
        source=tuned.source,
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
            f"{tuned.source}: lacks {_shown(missing)} of {base.source}; exclude what is to stay as the base has it"
        )


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"{', '.join(names[:_NAMES_SHOWN])}{more}"

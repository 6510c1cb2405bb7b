"""Export of a delta as a SHiRA adapter, a folder that PEFT loads without this library."""

import os
import re
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from rst.checkpoints.checkpoint import Checkpoint, open_checkpoint
from rst.checkpoints.delta_in_module import renamed_in_module
from rst.checkpoints.transformers_files import coordinates_of
from rst.delta.parameter_delta import ParameterDelta, gather
from rst.delta.sparse_delta import SparseDelta
from rst.errors import CheckpointError, NotCarriedError
from rst.extras import install_command
from rst.files.atomic import atomic_write
from rst.files.safetensors_writer import specs_of, write_safetensors
from rst.interop.linear_places import obstacle, places_of_parameters
from rst.interop.model_folder import model_skeleton
from rst.interop.not_carried import check_carried
from rst.interop.shira_rank import Layer, choose_rank
from rst.naming import unwrap
from rst.numerics.fingerprint import digest
from rst.operations.convert import convert

PathLike = str | os.PathLike[str]
CONFIG_FILE = "adapter_config.json"
_WRAPPER = "base_model.model."


def to_shira(
    delta: SparseDelta | PathLike, folder: PathLike, base: PathLike | nn.Module, *, partial: bool = False
) -> dict[str, str]:
    """Write a PEFT adapter of type SHiRA with the same outputs, for `PeftModel.from_pretrained(base, folder)`.

    Every changed `nn.Linear` weight is carried, and every module that the delta stores whole, as `modules_to_save`.
    PEFT requires the same r times (in + out) entries in each layer, so layers with fewer are padded with entries of
    -0.0, which change no weight, not even the sign of a zero.

    Args:
        delta: the delta or its file.
        folder: created if missing. Its `adapter_config.json` and `adapter_model.safetensors` are replaced.
        base: the delta's base, a model folder of transformers or a module, read at the changed positions. A module on
            the meta device does as well, if the delta's op is "add"; whether it is the right one is not checked then.
        partial: leave out what cannot be carried, and write entries of the overlay, which plain addition misses, as
            the residual that comes nearest.

    Returns:
        Names of the tensors that were left out or are not exact, with the reason. Empty unless `partial`.

    Raises:
        CheckpointError: peft is missing, or the base cannot be read.
        DeltaFormatError: the delta is damaged.
        NotCarriedError: without `partial`, something cannot be carried (each tensor is listed): biases, norms,
            convolutions, embeddings, overlay entries, single tensors stored whole, layers that do not fit one r.
        ParameterMismatchError: a weight of the base has another shape.
        WrongBaseError: the base's values are not those the delta was made from.
    """
    model = unwrap(base) if isinstance(base, nn.Module) else model_skeleton(base)
    residuals = convert(delta, op="add", base=base)
    _check_base(residuals, open_checkpoint(base).named_as(residuals))
    residuals = renamed_in_module(residuals, coordinates_of(model))
    places = places_of_parameters(model)
    reasons: dict[str, str] = {}
    changes: dict[str, ParameterDelta] = {}
    for name, change in residuals.items():
        if reason := obstacle(name, change, places):
            reasons[name] = reason
        else:
            changes[name] = change
    layers = {name: Layer(change.nnz, *change.shape) for name, change in changes.items()}
    rank = choose_rank(layers)
    for name, layer in layers.items():
        if not layer.holds(rank):
            del changes[name]
            reasons[name] = (
                f"has {layer.nnz} of {layer.rows} x {layer.columns} entries, but all layers share one rank r, here "
                f"{rank}, and store {layer.slots(rank)}"
            )
        elif missed := changes[name].exact_indices.numel():
            reasons[name] = f"has {missed} entries that no residual reaches"
    saved, unsaved = _modules_saved_whole(residuals, model)
    reasons |= dict.fromkeys(unsaved, "is stored whole, but PEFT saves whole modules only")
    check_carried(os.fspath(folder), reasons, partial, len(changes))
    if not changes:
        raise NotCarriedError(
            "the delta changes no weight of a Linear layer, and PEFT cannot load an adapter without layers", file=folder
        )

    targets = {place.module_name: changes[name] for name in changes for place in places[name]}
    tensors = {f"{_WRAPPER}{name}": residuals.dense[name].contiguous() for names in saved.values() for name in names}
    for module_name, change in targets.items():
        indices, weights = _fill_up(change, Layer(change.nnz, *change.shape).slots(rank))
        tensors[f"{_WRAPPER}{module_name}.shira_indices"] = indices
        tensors[f"{_WRAPPER}{module_name}.shira_weight"] = weights
    base_name = residuals.base.name if isinstance(base, nn.Module) else os.fspath(base)
    _write(Path(folder), tensors, rank, list(targets), list(saved), base_name)
    return reasons


def _check_base(delta: SparseDelta, weights: Checkpoint) -> None:
    for name, change in delta.items():
        for present in (candidate for candidate in delta.names_of(name) if candidate in weights):
            origin = weights[present].detach()
            if origin.device.type != "meta" and tuple(origin.shape) == change.shape and origin.dtype == change.dtype:
                touched = gather(origin.reshape(-1), change.indices.long().to(origin.device))
                change.check_touched(present, digest(touched), weights.source)


def _modules_saved_whole(delta: SparseDelta, model: nn.Module) -> tuple[dict[str, list[str]], list[str]]:
    """Return the modules whose tensors the delta all stores whole, with their names, and the remaining names."""
    modules = dict(model.named_modules())
    by_module: dict[str, list[str]] = defaultdict(list)
    for name in delta.dense:
        by_module[name.rpartition(".")[0]].append(name)
    saved = {
        module_name: names
        for module_name, names in by_module.items()
        if module_name in modules
        and {f"{module_name}.{key}" for key in modules[module_name].state_dict()} == set(names)
        # PEFT wraps every module whose name ends with this
        and sum(other.endswith(module_name) for other in modules) == 1
    }
    return saved, [name for names in by_module.values() for name in names if name.rpartition(".")[0] not in saved]


def _fill_up(change: ParameterDelta, slots: int) -> tuple[Tensor, Tensor]:
    """Return rows and columns, int32 of shape (2, slots), and residuals, with -0.0 where nothing changes."""
    unused = torch.ones(change.numel, dtype=torch.bool)
    unused[change.indices.long().cpu()] = False
    filling = unused.nonzero().squeeze(1)[: slots - change.nnz]
    positions, order = torch.cat([change.indices.long().cpu(), filling]).sort()
    weights = torch.cat([change.values.cpu(), torch.full((filling.numel(),), -0.0, dtype=change.dtype)])
    columns = change.shape[1]
    return torch.stack([positions // columns, positions % columns]).int(), weights[order]


def _write(
    folder: Path, tensors: dict[str, Tensor], rank: int, targets: list[str], saved: list[str], base_name: str | None
) -> None:
    try:
        from peft import ShiraConfig
    except ImportError as error:
        raise CheckpointError(
            f"writing a SHiRA adapter needs PEFT: {install_command('peft')} ({error})", file=folder
        ) from error
    config = ShiraConfig(
        r=rank,
        target_modules="|".join(map(re.escape, targets)),  # a list would match every module whose name ends with one
        modules_to_save=saved or None,
        base_model_name_or_path=base_name,
        inference_mode=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    model_file, config_file, specs = folder / "adapter_model.safetensors", folder / CONFIG_FILE, specs_of(tensors)
    with TemporaryDirectory() as scratch, atomic_write(config_file) as temporary_config:
        config.save_pretrained(scratch)
        temporary_config.write_bytes((Path(scratch) / CONFIG_FILE).read_bytes())
        with atomic_write(model_file) as temporary:
            write_safetensors(temporary, specs, (tensors[name] for name in specs))
            config_file.unlink(missing_ok=True)  # the folder is not an adapter in between

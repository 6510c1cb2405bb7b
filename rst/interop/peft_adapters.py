"""Conversion of LoRA, DoRA, IA3, SHiRA and any other adapter that PEFT can merge into a delta of its base."""

import copy
import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rst.checkpoints.checkpoint import Checkpoint, open_checkpoint
from rst.checkpoints.transformers_files import coordinates_of
from rst.delta.sparse_delta import SparseDelta
from rst.errors import CheckpointError, NonFiniteError, ParameterMismatchError, naming_file
from rst.extras import install_command
from rst.interop.adapter_config import check_adapter_config
from rst.interop.model_folder import load_model
from rst.naming import unwrap
from rst.operations.export import export

if TYPE_CHECKING:
    from peft import PeftModel

PathLike = str | os.PathLike[str]
_WRAPPER = "base_model.model."


def from_peft(adapter: PathLike, base: PathLike | nn.Module, *, threshold: float | None = None) -> SparseDelta:
    """Merge a PEFT adapter into its base, and extract what that changes.

    >>> from_peft("my-lora", "llama").save("my-lora.safetensors")

    Args:
        adapter: a folder of `adapter_config.json` and `adapter_model.safetensors` (or `.bin`).
        base: the model folder of transformers that it belongs to, or the loaded model itself, which is left as it is
            (and copied; a folder costs the memory of one model).
        threshold: tau of Eq. 17. None keeps every changed bit: the delta then gives the weights of
            `merge_and_unload()`, which are dense wherever the adapter is of low rank.

    Returns:
        The delta, with the adapter's `modules_to_save` stored whole.

    Raises:
        CheckpointError: peft or transformers is missing, or cannot load the folder.
        ConfigError: a threshold that is negative or not finite.
        NonFiniteError: merging gives a NaN.
        ParameterMismatchError: adapter and base have other weights than each other.
    """
    model = load_model(base) if isinstance(base, (str, os.PathLike)) else copy.deepcopy(unwrap(base))
    adapted = _attach(model, adapter)
    whole = _modules_saved_whole(adapted)
    kind = _kind(adapted)
    merged = _merge(adapter, adapted)
    origin = open_checkpoint(base)
    in_files = coordinates_of(merged).files_of_all(name for name in merged.state_dict() if _is_within(name, whole))
    saved = whole if all(_is_within(name, whole) for name in in_files) else in_files
    tuned = _weights_of_base(origin, open_checkpoint(merged), in_files)
    try:
        with naming_file(adapter):
            delta = export(base, tuned, threshold=threshold, modules_to_save=saved or None)
    except NonFiniteError as error:
        raise NonFiniteError(f"{error.reason} once merged", file=adapter, parameter=error.parameter) from error
    config = {**delta.config, "converted_from": {"peft_type": kind}}
    return replace(delta, config=config, coordinates=origin.coordinates)


def _attach(model: nn.Module, adapter: PathLike) -> "PeftModel":
    check_adapter_config(Path(adapter), [tuple(parameter.shape) for parameter in model.parameters()])
    try:
        from peft import PeftModel
        from peft.utils import load_peft_weights

        adapted = PeftModel.from_pretrained(model, os.fspath(adapter), torch_device="cpu")
        stored = load_peft_weights(os.fspath(adapter), device="cpu")
    except ImportError as error:
        raise CheckpointError(
            f"reading a PEFT adapter needs PEFT: {install_command('peft')} ({error})", file=adapter
        ) from error
    except Exception as error:  # a malformed configuration can make PEFT raise any class
        raise CheckpointError(f"PEFT cannot load it ({error})", file=adapter) from error
    if not hasattr(adapted, "merge_and_unload"):
        raise CheckpointError(
            f"{_kind(adapted)} adapters add inputs or layers; they change no weights that could be merged", file=adapter
        )
    _check_complete(adapter, adapted, stored)
    return adapted


def _merge(adapter: PathLike, adapted: "PeftModel") -> nn.Module:
    try:
        # SHiRA's positions may come from an untrusted file; by default torch writes outside the tensor without checking
        with torch.sparse.check_sparse_tensor_invariants(True):  # type: ignore[no-untyped-call]
            merged: nn.Module = adapted.merge_and_unload()
    except Exception as error:  # as above
        raise CheckpointError(f"PEFT cannot merge it ({error})", file=adapter) from error
    return merged


def _check_complete(adapter: PathLike, adapted: "PeftModel", stored: Mapping[str, Any]) -> None:
    """Raise for missing or superfluous weights, of which PEFT only warns or which it drops."""
    from peft import get_peft_model_state_dict

    wanted = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    own = adapted.state_dict()  # PEFT may save whole embeddings with the adapter
    for what, names, advice in (
        ("the adapter lacks", wanted.keys() - stored.keys(), "is this the adapter's base?"),
        (
            f"the base, a {type(adapted.get_base_model()).__name__}, has no place for",
            stored.keys() - wanted.keys() - own.keys(),
            "the base must be the model that the adapter was trained on, with its head; save that model to a folder, "
            "or pass it to rst.from_peft",
        ),
    ):
        if names:
            example = min(names).removeprefix(_WRAPPER)
            raise ParameterMismatchError(f"{what} {len(names)} weights, such as {example}; {advice}", file=adapter)


def _kind(adapted: "PeftModel") -> str:
    return str(adapted.active_peft_config.peft_type).removeprefix("PeftType.")


def _modules_saved_whole(adapted: "PeftModel") -> list[str]:
    from peft.utils import ModulesToSaveWrapper

    return [
        name.removeprefix(_WRAPPER)
        for name, module in adapted.named_modules()
        if isinstance(module, ModulesToSaveWrapper)
    ]


def _weights_of_base(base: Checkpoint, merged: Mapping[str, Tensor], whole: Collection[str]) -> dict[str, Tensor]:
    """Return the merged weights that the base has or the adapter adds, then other names of the same tensors.

    A module may have more than its file: newly initialised heads, ties that the file leaves out.
    """
    kept = {name: tensor for name, tensor in merged.items() if name in base or name in whole}
    places = {tensor.data_ptr() for tensor in kept.values() if tensor.numel()}
    return kept | {name: tensor for name, tensor in merged.items() if tensor.data_ptr() in places}


def _is_within(name: str, modules: Collection[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)

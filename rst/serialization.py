"""`delta.safetensors`, format 1: arrays that anyone with safetensors can read, and metadata that proves them.

For a parameter `p`: `p.indices` (flat row-major positions) and `p.values` (residuals), or `p.residual` (residuals of
the full shape, -0.0 where nothing changed) where that is smaller; `p.exact_indices` and `p.exact_values` (absolute
values that win over the residual) where needed. `p.dense` is a tensor stored whole.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rst.atomic import atomic_write
from rst.delta import BaseIdentity, SparseDelta
from rst.dtypes import DTYPE_OF_NAME, NAME_OF_DTYPE
from rst.errors import CheckpointError, DeltaFormatError
from rst.exactness import RESIDUAL_DTYPES, bits
from rst.fingerprint import digest, digest_text
from rst.parameter_delta import BaseDigests, ParameterDelta, index_dtype
from rst.validation import validate
from rst.version import __version__

FORMAT = "rst"
FORMAT_VERSION = 1
ENCODINGS = ("coo",)


def save(delta: SparseDelta, path: str | os.PathLike[str]) -> None:
    """Write a delta, atomically.

    Raises:
        DeltaFormatError: the delta is malformed (built by hand); nothing is written.
        OSError: the folder is missing, read-only or full.
    """
    tensors: dict[str, Tensor] = {}
    for name, change in delta.parameters.items():
        validate(name, change, "delta")
        tensors |= {f"{name}.{part}": array for part, array in _arrays(change.to("cpu")).items()}
    for name, tensor in delta.dense.items():
        tensors[f"{name}.dense"] = tensor.detach().cpu().contiguous()
    metadata = _metadata(delta)
    metadata["digest"] = _payload_digest(metadata, tensors)
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata)


def load(path: str | os.PathLike[str]) -> SparseDelta:
    """Read a delta and check all of it: version, digest, and every array's dtype, length, order and range.

    Raises:
        CheckpointError: there is no such file.
        DeltaFormatError: anything in it is not as it should be.
    """
    source = str(path)
    metadata, tensors = _read(source)
    _check_version(source, metadata)
    expected = metadata.pop("digest", None)
    if expected != _payload_digest(metadata, tensors):
        raise DeltaFormatError(f"{source}: the digest does not fit the contents; the file was altered or damaged")
    try:
        return _rebuild(source, metadata, tensors)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise DeltaFormatError(f"{source}: malformed metadata ({type(error).__name__}: {error})") from error


def _arrays(change: ParameterDelta) -> dict[str, Tensor]:
    arrays: dict[str, Tensor] = {}
    if change.dtype in RESIDUAL_DTYPES:
        width = change.dtype.itemsize
        if change.nnz * (change.indices.element_size() + width) > change.numel * width:
            residual = torch.full((change.numel,), -0.0, dtype=change.dtype)
            residual[change.indices] = change.values
            arrays["residual"] = residual.view(change.shape)
        else:
            arrays |= {"indices": change.indices.contiguous(), "values": change.values.contiguous()}
    if change.exact_indices.numel():
        arrays |= {"exact_indices": change.exact_indices.contiguous(), "exact_values": change.overlay.contiguous()}
    return arrays


def _metadata(delta: SparseDelta) -> dict[str, str]:
    base = {"name": delta.base.name, "revision": delta.base.revision, "weights": delta.base.weights}
    whole = {"names": sorted(delta.dense), "buffers": sorted(delta.buffers)}
    return {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "library_version": __version__,
        "op": "add",
        "encoding": "coo",
        "nnz": str(delta.nnz),
        "dsp": str(delta.dsp()),
        "config": _to_json(dict(delta.config)),
        "base": _to_json(base | {"fingerprint": delta.fingerprint()}),
        "parameters": _to_json({name: _describe(change) for name, change in delta.parameters.items()}),
        "dense": _to_json(whole),
        "tied": _to_json(dict(delta.tied)),
    }


def _describe(change: ParameterDelta) -> dict[str, Any]:
    record: dict[str, Any] = {"shape": list(change.shape), "dtype": NAME_OF_DTYPE[change.dtype]}
    if change.base is not None:
        record |= {"base": change.base.whole, "touched": change.base.touched}
    return record


def _to_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _payload_digest(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """Digest of everything a reader uses: metadata, and each array's name, dtype, shape and bytes."""
    contents = [[name, str(tensor.dtype), list(tensor.shape), digest(tensor)] for name, tensor in tensors.items()]
    return digest_text(_to_json([dict(metadata), sorted(contents)]))


def _read(source: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    if not Path(source).is_file():
        raise CheckpointError(f"{source}: no such file")
    try:
        with safe_open(source, framework="pt") as file:
            return dict(file.metadata() or {}), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise DeltaFormatError(f"{source}: not a readable safetensors file ({error})") from error


def _check_version(source: str, metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise DeltaFormatError(f'{source}: not an RST delta (format is {metadata.get("format")!r}, wanted "{FORMAT}")')
    version = metadata.get("format_version")
    if version != str(FORMAT_VERSION):
        raise DeltaFormatError(f"{source}: format version {version}; this library reads version {FORMAT_VERSION}")
    if metadata.get("encoding") not in ENCODINGS or metadata.get("op") != "add":
        raise DeltaFormatError(
            f"{source}: encoding {metadata.get('encoding')!r} with op {metadata.get('op')!r}; "
            f"rst {__version__} reads encodings {list(ENCODINGS)} with op 'add'"
        )


def _rebuild(source: str, metadata: Mapping[str, str], tensors: dict[str, Tensor]) -> SparseDelta:
    parameters = {}
    for name, record in json.loads(metadata["parameters"]).items():
        change = _read_change(source, name, record, tensors)
        validate(name, change, source)
        parameters[name] = change
    whole = json.loads(metadata["dense"])
    dense = {name: tensors.pop(f"{name}.dense") for name in whole["names"]}
    if tensors:
        raise DeltaFormatError(f"{source}: {len(tensors)} tensors that the metadata lacks, first {min(tensors)!r}")
    base = json.loads(metadata["base"])
    return SparseDelta(
        parameters=parameters,
        dense=dense,
        buffers=frozenset(whole["buffers"]),
        tied=json.loads(metadata["tied"]),
        base=BaseIdentity(base["name"], base["revision"], int(base["weights"])),
        config=json.loads(metadata["config"]),
    )


def _read_change(source: str, name: str, record: Mapping[str, Any], tensors: dict[str, Tensor]) -> ParameterDelta:
    shape, dtype = tuple(int(size) for size in record["shape"]), DTYPE_OF_NAME[record["dtype"]]
    no_indices, no_values = torch.empty(0, dtype=torch.int32), torch.empty(0, dtype=dtype)
    exact_indices = tensors.pop(f"{name}.exact_indices", no_indices)
    exact_values = tensors.pop(f"{name}.exact_values", no_values)
    residual = tensors.pop(f"{name}.residual", None)
    if residual is not None:
        indices, values = _sparsify(source, name, residual, shape, dtype, exact_indices)
    else:
        indices, values = tensors.pop(f"{name}.indices", no_indices), tensors.pop(f"{name}.values", no_values)
    base = BaseDigests(record["base"], record["touched"]) if "base" in record else None
    return ParameterDelta(indices, values, shape, dtype, exact_indices, exact_values, base)


def _sparsify(
    source: str, name: str, residual: Tensor, shape: tuple[int, ...], dtype: torch.dtype, exact_indices: Tensor
) -> tuple[Tensor, Tensor]:
    """Invert the full-shape form: -0.0 is the one residual that changes no number, so it marks untouched entries."""
    if tuple(residual.shape) != shape or residual.dtype != dtype:
        raise DeltaFormatError(f"{source}: {name}: residual is {residual.dtype} {tuple(residual.shape)}, not {shape}")
    flat = residual.reshape(-1)
    changed = bits(flat) != bits(torch.tensor(-0.0, dtype=dtype))
    changed[exact_indices] = True
    indices = changed.nonzero().squeeze(1)
    return indices.to(index_dtype(flat.numel())), flat[indices]

"""The file `delta.safetensors`, format 1: a delta's arrays in one of two encodings, and metadata to check them by.

`rst.delta.coo` (readable by anyone) or `rst.delta.packed` (small) lays out the arrays of the parameters. In both
encodings, `p.dense` is a tensor stored whole.
"""

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from rst.delta import coo
from rst.delta.embedded_digest import digest_fits, write_sealed
from rst.delta.parameter_delta import Op
from rst.delta.parameter_header import read_headers, write_headers
from rst.delta.sparse_delta import BaseIdentity, CoordinatesName, Encoding, SparseDelta
from rst.delta.validation import validate
from rst.errors import CheckpointError, ConfigError, DeltaFormatError, RSTWarning
from rst.files.atomic import atomic_write
from rst.files.budget import Budget
from rst.files.safetensors_reader import StoredArrays, read_safetensors
from rst.files.safetensors_writer import specs_of
from rst.files.strict_json import check_depth, parse_json, strings, to_json, typed
from rst.printable import printable
from rst.version import __version__

FORMAT = "rst"
FORMAT_VERSION = 1
FOLDER_VERSION = 1
DELTA_FILE = "delta.safetensors"
CONFIG_FILE = "rst_config.json"
_DAMAGE = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RuntimeError, MemoryError)


def save(delta: SparseDelta, path: str | os.PathLike[str], encoding: Encoding = "coo") -> None:
    """Write a delta atomically. The same delta gives the same bytes.

    Args:
        delta: a delta whose parameters have any one operation; `rst.convert` changes the operation.
        path: the file to write. An existing file is replaced.
        encoding: "coo" can be read with safetensors alone; "packed" takes a third of the bytes or less.

    Raises:
        ConfigError: the encoding is unknown.
        DeltaFormatError: the delta is malformed (built by hand), or has a dtype that safetensors lacks.
        ParameterMismatchError: the parameters mix operations. As with all errors, nothing is written.
        OSError: the folder is missing, read-only or full.
    """
    if encoding not in get_args(Encoding):
        raise ConfigError(f"encoding={encoding!r}: choose one of {list(get_args(Encoding))}")
    validate(delta.parameters, "delta")
    _check_names("delta", delta)
    parameters = {name: change.to("cpu") for name, change in delta.parameters.items()}
    metadata = _metadata(delta, encoding)
    headers = write_headers(parameters)
    if encoding == "packed":
        from rst.delta import packed  # this imports pcodec, which `import rst` does not need

        arrays = packed.to_arrays(parameters) | {"records": packed.pack_headers(headers, len(parameters))}
    else:
        arrays = coo.to_arrays(parameters)
        metadata["parameters"] = headers
    for name, tensor in delta.dense.items():
        arrays[f"{name}.dense"] = tensor.detach().cpu().contiguous()
    specs = specs_of(arrays)
    with atomic_write(path) as temporary:
        write_sealed(temporary, specs, (arrays[name] for name in specs), metadata)


def delta_file(path: str | os.PathLike[str]) -> Path:
    """Return the file of a delta: the path itself, or the file in an adapter folder."""
    return Path(path) / DELTA_FILE if Path(path).is_dir() else Path(path)


def load_delta(delta: SparseDelta | str | os.PathLike[str]) -> SparseDelta:
    """Read a delta and check all of it: the version, the digest, and each array's dtype, length, order and range.

    Args:
        delta: a file, or a folder that `save_pretrained` wrote; a delta is returned unchanged.

    Raises:
        CheckpointError: the file does not exist, or the folder lacks its configuration.
        DeltaFormatError: the file is damaged or malformed.
    """
    if isinstance(delta, SparseDelta):
        return delta
    beside = read_settings(delta)[0] if Path(delta).is_dir() else {}
    source = str(delta_file(delta))
    contents = read_safetensors(source)
    _check_version(source, contents.metadata)
    if not digest_fits(contents.data, contents.metadata.get("digest", "")):
        raise DeltaFormatError("the digest does not match the contents; the file was altered or damaged", file=source)
    try:
        found = _rebuild(source, contents.metadata, contents.stored, Budget(contents.data.nbytes))
    except _DAMAGE as error:
        raise DeltaFormatError(f"malformed metadata ({type(error).__name__}: {error})", file=source) from error
    for name, count in (("nnz", found.nnz), ("dsp", found.dsp())):
        if (said := contents.metadata.get(name, str(count))) != str(count):
            raise DeltaFormatError(
                f"the metadata gives {name} as {said[:20]}, but the arrays have {count}", file=source
            )
    _warn_of_other_settings(delta, beside, found.config)
    return found


def _instead_of_settings(folder: Path) -> str:
    """Say what to do with a folder that has no `rst_config.json`."""
    if (folder / "adapter_config.json").is_file():
        return (
            "the folder holds an adapter of PEFT: convert it first, with rst.from_peft or "
            "rst convert ADAPTER delta.safetensors --base BASE"
        )
    inside = min((path.parent for path in folder.glob(f"*/{CONFIG_FILE}")), default=None)
    if inside:
        return f"the adapters are in folders inside it: name one of them, such as {printable(str(inside))}"
    return "save_pretrained writes one into its folder"


def read_settings(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], BaseIdentity]:
    """Read the configuration in an adapter's folder, in JSON types, and the name and revision of the base.

    Raises:
        CheckpointError: the folder has no `rst_config.json`.
        DeltaFormatError: the file is damaged, or has another version.
    """
    path = Path(folder) / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(f"no such file; {_instead_of_settings(path.parent)}", file=path)
    try:
        content = parse_json(path.read_bytes())
        kind, version, config = content["format"], content["format_version"], content.get("config", {})
        base = BaseIdentity(content.get("base_model_name_or_path"), content.get("base_model_revision"))
        if not isinstance(config, dict) or not all(isinstance(part, str | None) for part in (base.name, base.revision)):
            raise TypeError("the config is not an object, or the base's name is not a string")
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise DeltaFormatError(f"malformed ({type(error).__name__}: {error})", file=path) from error
    if kind != FORMAT or version != FOLDER_VERSION:
        found = f"{str(kind)[:99]!r} version {str(version)[:99]}"
        raise DeltaFormatError(f"format {found}; this library reads {FORMAT} {FOLDER_VERSION}", file=path)
    return config, base


def _warn_of_other_settings(folder: str | os.PathLike[str], beside: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Warn if the configuration beside a delta was edited and is no longer the delta's own."""
    if other := [name for name, value in beside.items() if name not in own or own[name] != value]:
        name = min(other)
        warnings.warn(
            f"{Path(folder) / CONFIG_FILE} has {name} {beside[name]!r}, but the delta has {own.get(name)!r}; "
            f"{len(other)} "
            "settings differ in total. The delta's own settings are used, for training too; save_pretrained writes "
            "both",
            RSTWarning,
            stacklevel=3,
        )


def _metadata(delta: SparseDelta, encoding: Encoding) -> dict[str, str]:
    base = {"name": delta.base.name, "revision": delta.base.revision, "weights": delta.base.weights}
    if delta.base.quantized is not None:
        base["quantized"] = delta.base.quantized
    known: dict[str, str] = {"coordinates": delta.coordinates} if delta.coordinates else {}
    if delta.model_config is not None:
        known["model_config"] = json.dumps(dict(delta.model_config), sort_keys=True)
    return known | {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "library_version": __version__,
        "op": delta.op,
        "encoding": encoding,
        "nnz": str(delta.nnz),
        "dsp": str(delta.dsp()),
        "config": to_json(dict(delta.config)),
        "base": to_json(base | {"fingerprint": delta.fingerprint()}),
        "dense": to_json({"names": sorted(delta.dense), "buffers": sorted(delta.buffers)}),
        "tied": to_json(dict(delta.tied)),
    }


def _check_version(source: str, metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        found = f'format is {metadata.get("format")!r}, wanted "{FORMAT}"'
        raise DeltaFormatError(f"not an RST delta ({found}); rst export creates one from two checkpoints", file=source)
    version = metadata.get("format_version")
    if version != str(FORMAT_VERSION):
        raise DeltaFormatError(f"format version {version}; this library reads version {FORMAT_VERSION}", file=source)
    choices = {"encoding": get_args(Encoding), "op": get_args(Op), "coordinates": (*get_args(CoordinatesName), None)}
    for setting, known in choices.items():
        if metadata.get(setting) not in known:
            written_by = metadata.get("library_version", "of unknown version")
            raise DeltaFormatError(
                f"{setting} {metadata.get(setting)!r}, written by rst {written_by}; "
                f"rst {__version__} reads {list(known)}",
                file=source,
            )


def _rebuild(source: str, metadata: Mapping[str, str], arrays: StoredArrays, budget: Budget) -> SparseDelta:
    op: Op = metadata["op"]  # type: ignore[assignment]  # checked with the version
    if metadata["encoding"] == "packed":
        from rst.delta import packed

        text = packed.unpack_headers(source, _array(arrays, "records"), budget)
        parameters = packed.from_arrays(source, read_headers(text, op), arrays, budget)
    else:
        parameters = coo.from_arrays(source, read_headers(metadata["parameters"], op), arrays)
    validate(parameters, source)
    whole = parse_json(metadata["dense"])
    dense = {name: _array(arrays, f"{name}.dense") for name in strings(whole["names"], "dense")}
    if len(arrays):
        raise DeltaFormatError(f"the metadata lacks {len(arrays)} of the arrays, such as {min(arrays)!r}", file=source)
    delta = SparseDelta(
        parameters=parameters,
        dense=dense,
        buffers=frozenset(strings(whole["buffers"], "buffers")),
        tied=_read_ties(metadata["tied"]),
        base=_read_base(metadata["base"]),
        config=check_depth(_mapping(metadata["config"])),
        coordinates=metadata.get("coordinates"),  # type: ignore[arg-type]  # checked with the version
        model_config=_read_model_config(metadata.get("model_config")),
    )
    _check_names(source, delta)
    return delta


def _array(arrays: StoredArrays, name: str) -> Tensor:
    if (array := arrays.take(name)) is None:
        raise KeyError(name)
    return array


def _read_base(text: str) -> BaseIdentity:
    base, name_or_none = _mapping(text), (str, type(None))
    weights = typed(base, "weights", int)
    if not 0 <= weights < 1 << 64:
        raise ValueError(f"{weights} compared weights")
    quantized = typed(base, "quantized", str) if "quantized" in base else None
    return BaseIdentity(typed(base, "name", *name_or_none), typed(base, "revision", *name_or_none), weights, quantized)


def _read_model_config(text: str | None) -> dict[str, Any] | None:
    """Read the text as transformers does, which accepts infinities."""
    if text is None:
        return None
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(found, dict):
        raise TypeError("model_config is not a mapping")
    return dict(check_depth(found))


def _read_ties(text: str) -> dict[str, str]:
    tied = _mapping(text)
    strings(list(tied.values()), "tied")
    return tied


def _check_names(source: str, delta: SparseDelta) -> None:
    """Raise `DeltaFormatError` if one name means two tensors."""
    for what, names in (("changed", delta.parameters), ("stored whole", delta.dense)):
        if alias := min(delta.tied.keys() & names.keys(), default=None):
            raise DeltaFormatError(f"tied to {delta.tied[alias]} and {what} itself", file=source, parameter=alias)
    if name := min(delta.parameters.keys() & delta.dense.keys(), default=None):
        raise DeltaFormatError("is both changed and stored whole", file=source, parameter=name)


def _mapping(text: str) -> dict[str, Any]:
    found = parse_json(text)
    if not isinstance(found, dict):
        raise TypeError(f"{text[:99]} is not a mapping")
    return found

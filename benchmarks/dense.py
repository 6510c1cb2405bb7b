"""Fine-tunes that change most weights: bytes by form of the delta, beside compressors of whole checkpoints.

Every delta is read back and merged, and gives the tuned model bit for bit; the compressors' output is undone.
"""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import get_args

import torch
from safetensors.torch import load_file

from benchmarks import external_tools
from benchmarks.checkpoint_pair import CheckpointPair
from benchmarks.record import RESULTS, Row, write
from benchmarks.trained_models import LanguageRun, full_fine_tune
from rst import SparseDelta, convert, export, merge
from rst.delta import packed
from rst.delta.parameter_delta import Op, ParameterDelta
from rst.numerics.exactness import bit_equal, bits

DATA = Path("../shared/data/realcugan")  # real checkpoints in float16; its SOURCE.txt has their origin
_RELATED = (
    ("se_up2x", "se_up2x_denoise1x"),
    ("se_up2x", "se_up2x_conservative"),
    ("pro_up2x", "pro_up2x_conservative"),
)
_RUNS = (LanguageRun(learning_rate=1e-6, steps=(8,)), LanguageRun(learning_rate=2e-5, steps=(60,)))
_QUICK = LanguageRun(width=128, layers=2, pretraining=3, learning_rate=2e-5, steps=(1,))
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def run(quick: bool, folder: Path = RESULTS) -> Path:
    """Measure and write `dense.json`."""
    with tempfile.TemporaryDirectory() as scratch:
        rows = [_row(pair, Path(scratch)) for pair in _pairs(quick)]
    notes = [
        "Bytes of whole files. rst's were read back and merged, and gave the tuned model bit for bit; what the "
        "compressors wrote was undone and compared. They store every tensor, without names and shapes.",
        'smallest: op="smallest", the best of the three for the whole file. An op for each tensor: what the file would '
        "take if every tensor had the best of its own.",
        "XOR by byte planes: of base and tuned, all lowest bytes of a tensor first. ZipNN compresses the tuned model "
        "alone.",
    ]
    if not DATA.is_dir():
        notes.append(f"Without the real checkpoints: {DATA} is not there.")
    return write("dense", "Storage of dense changes: bytes by form", rows, notes, folder=folder)


def _pairs(quick: bool) -> Iterator[CheckpointPair]:
    for before, after in _RELATED if DATA.is_dir() and not quick else ():
        base, tuned = (load_file(DATA / f"{name}.safetensors") for name in (before, after))
        yield CheckpointPair(f"float16, Real-CUGAN, {before} to {after}", base, tuned)
    for settings in (_QUICK,) if quick else _RUNS:
        yield from full_fine_tune(settings, _DTYPES)


def _row(pair: CheckpointPair, scratch: Path) -> Row:
    sizes = _delta_sizes(pair, scratch)
    planes = scratch / "planes"
    planes.write_bytes(b"".join(_planes(bits(pair.base[name]) ^ bits(one)) for name, one in pair.tuned.items()))
    numbers: dict[str, float | int | str | None] = {
        "weights": sum(tensor.numel() for tensor in pair.tuned.values()),
        "changed": pair.changed,
        "the tuned weights": sum(tensor.nbytes for tensor in pair.tuned.values()),
        "ZipNN": _zipnn_size(pair),
        "XOR by byte planes, zstd -3": _zstd_size(planes, 3),
        "XOR by byte planes, zstd -19": _zstd_size(planes, 19),
    }
    return Row(pair.name, numbers | sizes)


def _delta_sizes(pair: CheckpointPair, scratch: Path) -> dict[str, int | str]:
    path, sizes = scratch / "delta.safetensors", dict[str, int | str]()
    forms = {op: export(pair.base, pair.tuned, op=op) for op in get_args(Op)}
    smallest = convert(forms["add"], op="smallest", base=pair.base)
    for name, delta in {**forms, "smallest": smallest}.items():
        delta.save(path, "packed")
        merged = merge(pair.base, SparseDelta.load(path))
        assert all(bit_equal(merged[name], tuned) for name, tuned in pair.tuned.items())
        sizes[f"rst packed {name}"] = path.stat().st_size
    saved = _packed_size(smallest.parameters) - _size_by_tensor(forms)
    return sizes | {"an op for each tensor": path.stat().st_size - saved, "the smallest is": smallest.op}


def _size_by_tensor(forms: dict[Op, SparseDelta]) -> int:
    """Bytes of all streams if each tensor has the op with which it alone is smallest."""
    chosen: dict[Op, dict[str, ParameterDelta]] = {op: {} for op in forms}
    for name in forms["add"]:
        op = min(forms, key=lambda one: _packed_size({name: forms[one][name]}))
        chosen[op][name] = forms[op][name]
    values = sum(_packed_size(changes, ("values", "exact")) for changes in chosen.values())
    return values + _packed_size(forms["add"].parameters, ("gaps",))


def _packed_size(changes: Mapping[str, ParameterDelta], kinds: tuple[str, ...] = ("",)) -> int:
    return sum(stream.nbytes for name, stream in packed.to_arrays(changes).items() if name.startswith(kinds))


def _planes(difference: torch.Tensor) -> bytes:
    return difference.reshape(-1, 1).view(torch.uint8).T.contiguous().numpy().tobytes()


def _zstd_size(source: Path, level: int) -> int | str:
    small, back = source.with_suffix(".zst"), source.with_suffix(".back")
    try:
        external_tools.zstd(source, small, level)
        external_tools.unzstd(small, back)
    except external_tools.NotInstalledError as reason:
        return str(reason)
    assert back.read_bytes() == source.read_bytes()
    return small.stat().st_size


def _zipnn_size(pair: CheckpointPair) -> int | str:
    """Each tensor by itself, as ZipNN compresses the files of models."""
    try:
        from zipnn import ZipNN  # type: ignore[import-not-found]
    except ImportError:
        return "skipped: zipnn is not installed"
    total = 0
    for tensor in pair.tuned.values():
        raw = bits(tensor).numpy().tobytes()
        coder = ZipNN(bytearray_dtype=str(tensor.dtype).removeprefix("torch."), threads=1)
        small = bytes(coder.compress(bytearray(raw)))  # of its own: it reorders what it is given
        assert bytes(coder.decompress(small)) == raw
        total += len(small)
    return total

"""The result of general tools on two checkpoint files, checked by reversing it, compared with this library's deltas."""

import filecmp
from collections.abc import Callable
from functools import partial
from pathlib import Path

from safetensors.torch import save_file

from benchmarks import external_tools
from benchmarks.checkpoint_pair import CheckpointPair
from benchmarks.layouts import write_xor
from rst import convert, export, merge

Sizes = dict[str, int | str]
_DELTAS = (("coo", "add"), ("packed", "add"), ("packed", "step"))


def file_sizes(pair: CheckpointPair, folder: Path, levels: tuple[int, ...]) -> Sizes:
    """Bytes of what turns the base's file into the tuned one, by tool; a reason where one is missing."""
    base, tuned, xor = (folder / name for name in ("base.safetensors", "tuned.safetensors", "xor"))
    save_file(pair.base, base)
    save_file(pair.tuned, tuned)
    write_xor(pair, xor)
    sizes: Sizes = {"the whole model, safetensors": tuned.stat().st_size}
    for level in levels:
        whole = partial(external_tools.zstd, level=level)
        patch = partial(external_tools.zstd_patch, base, level=level)
        unpatch = partial(external_tools.zstd_unpatch, base)
        sizes[f"zstd -{level} of the whole model"] = _size(whole, external_tools.unzstd, tuned)
        sizes[f"zstd -{level} of the XOR"] = _size(whole, external_tools.unzstd, xor)
        sizes[f"zstd -{level} --patch-from"] = _size(patch, unpatch, tuned)
    sizes["xdelta3 -9"] = _size(
        partial(external_tools.xdelta3, base), partial(external_tools.xdelta3_apply, base), tuned
    )
    return sizes | _rst_sizes(pair, base, tuned, folder)


def _size(pack: Callable[[Path, Path], None], unpack: Callable[[Path, Path], None], source: Path) -> int | str:
    packed, unpacked = source.with_suffix(".packed"), source.with_suffix(".unpacked")
    try:
        pack(source, packed)
        unpack(packed, unpacked)
    except external_tools.NotInstalledError as reason:
        return str(reason)
    assert filecmp.cmp(source, unpacked, shallow=False), f"{pack} does not restore {source}"
    return packed.stat().st_size


def _rst_sizes(pair: CheckpointPair, base: Path, tuned: Path, folder: Path) -> Sizes:
    delta, path, merged = export(base, tuned), folder / "delta.safetensors", folder / "merged.safetensors"
    sizes: Sizes = {}
    for encoding, op in _DELTAS:
        convert(delta, op=op, base=base).save(path, encoding=encoding)
        merge(base, path, merged)
        assert export(tuned, merged).nnz == 0
        sizes[f"rst {encoding} {op}"] = path.stat().st_size
    return sizes

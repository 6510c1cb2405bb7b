"""Export and merge of checkpoints from 0.1 to 7 billion bf16 weights: time, share of read bandwidth, peak memory.

Each measurement runs in a process of its own, so that its peak resident memory can be measured.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.page_cache import forget
from benchmarks.plots import curves
from benchmarks.record import RESULTS, Row, write
from rst import export, merge

_Shapes = dict[str, tuple[int, int]]
_LAYER: _Shapes = {"attn": (4096, 4096), "up": (11008, 4096), "down": (4096, 11008)}  # 107 million weights
_QUICK_LAYER: _Shapes = {name: (rows // 8, columns // 8) for name, (rows, columns) in _LAYER.items()}
_SHARD_LAYERS = 8
_LARGEST = 11008 * 4096 * 2  # bytes
_FREE_SPACE_FACTOR = 3.5  # base, tuned, merged or the copy, and room


def run(quick: bool, folder: Path = RESULTS) -> Path:
    """Generate sharded pairs of growing size, export and merge each, and check the merged bytes."""
    rows = []
    shapes = _QUICK_LAYER if quick else _LAYER
    in_a_layer = sum(a * b for a, b in shapes.values())
    for billions in (0.002,) if quick else (0.1, 1.0, 3.0, 7.0):
        layers = max(1, round(billions * 1e9 / in_a_layer))
        with tempfile.TemporaryDirectory() as name:
            need = round(layers * in_a_layer * 2 * _FREE_SPACE_FACTOR)
            if shutil.disk_usage(name).free < need:
                rows.append(Row(f"{billions} billion weights", {"skipped": f"needs {need >> 30} GiB of disk"}))
            else:
                rows.append(_measure(billions, Path(name), layers, shapes))
    notes = [
        "bf16, 1 % of the weights changed, in shards as transformers writes them; the merged file is one safetensors.",
        f"Largest tensor {_LARGEST >> 20} MiB. Peak memory is the process's peak resident set, its libraries included "
        "(the first column of memory: a process that only imports rst).",
        "The peaks grow with the delta, which is held in memory: 1 % of 7 billion weights at 6 bytes is 400 MiB.",
        "Reading: the same bytes by read() into a 16 MiB buffer, in a process of its own, straight before. "
        "Export reads base and tuned; merge reads the base and writes as much, as the copy does, and both wait until "
        "the disk has the file (fsync).",
        "Before each of them the system is told to forget all files, so that all read from the disk.",
    ]
    title = "Export and merge of sharded bf16 checkpoints"
    measured = [row for row in rows if "skipped" not in row.numbers]
    seconds = ("seconds", ["read both s", "export s", "copy s", "merge s"])
    memory = ("MiB", ["imports MiB", "export peak MiB", "merge peak MiB"])
    curves(measured, "GB each", [seconds, memory], title, folder / "checkpoints.png")
    return write("checkpoints", title, rows, notes, folder=folder)


def _measure(billions: float, folder: Path, layers: int, shapes: _Shapes) -> Row:
    _generate(folder, layers, shapes)
    imports = _child("imports", folder)
    read = _child("read", folder)
    exported = _child("export", folder)
    copied = _child("copy", folder)
    merged = _child("merge", folder)
    _child("check", folder)
    gigabytes = layers * sum(a * b for a, b in shapes.values()) * 2 / 1e9
    return Row(
        f"{billions} billion weights",
        {
            "GB each": round(gigabytes, 1),
            "read both s": round(read["seconds"], 2),
            "export s": round(exported["seconds"], 2),
            "export, share of read bandwidth": round(read["seconds"] / exported["seconds"], 2),
            "copy s": round(copied["seconds"], 2),
            "merge s": round(merged["seconds"], 2),
            "merge, share of copy bandwidth": round(copied["seconds"] / merged["seconds"], 2),
            "imports MiB": round(imports["peak"]),
            "export peak MiB": round(exported["peak"]),
            "merge peak MiB": round(merged["peak"]),
        },
    )


def _generate(folder: Path, layers: int, shapes: _Shapes) -> None:
    generator = torch.Generator().manual_seed(0)
    for side in ("base", "tuned"):
        (folder / side).mkdir()
    weight_map = {}
    pool = (torch.randn(min(1 << 24, max(a * b for a, b in shapes.values())), generator=generator) * 0.02).to(
        torch.bfloat16
    )
    for first in range(0, layers, _SHARD_LAYERS):
        base, tuned = {}, {}
        for layer in range(first, min(first + _SHARD_LAYERS, layers)):
            for part, shape in shapes.items():
                name, size = f"layers.{layer}.{part}.weight", shape[0] * shape[1]
                base[name] = pool.repeat(-(-size // pool.numel()))[:size].roll(layer).view(shape)
                tuned[name] = base[name].clone()
                positions = torch.randint(size, (size // 100,), generator=generator)
                tuned[name].view(-1).view(torch.int16)[positions] += 1
                weight_map[name] = f"model-{first:05d}.safetensors"
        save_file(base, folder / "base" / f"model-{first:05d}.safetensors")
        save_file(tuned, folder / "tuned" / f"model-{first:05d}.safetensors")
    for side in ("base", "tuned"):
        index = folder / side / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": weight_map}))


def _child(task: str, folder: Path) -> dict[str, float]:
    for path in folder.rglob("*.safetensors"):
        forget(path)
    command = [sys.executable, "-m", "benchmarks.checkpoints", task, str(folder)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _work(task: str, folder: Path) -> None:
    if task == "read":
        for side in ("base", "tuned"):
            _read(sorted((folder / side).glob("*.safetensors")))
    elif task == "export":
        export(folder / "base", folder / "tuned").save(folder / "delta.safetensors")
    elif task == "copy":
        with (folder / "copy").open("wb") as target:
            for path in sorted((folder / "base").glob("*.safetensors")):
                with path.open("rb") as source:
                    shutil.copyfileobj(source, target, 1 << 24)
            target.flush()
            os.fsync(target.fileno())
        (folder / "copy").unlink()
    elif task == "merge":
        merge(folder / "base", folder / "delta.safetensors", folder / "merged.safetensors")
    elif task == "check":
        assert export(folder / "tuned", folder / "merged.safetensors").nnz == 0
        (folder / "merged.safetensors").unlink()


def _read(paths: list[Path]) -> None:
    buffer = memoryview(bytearray(1 << 24))
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


if __name__ == "__main__":
    start = time.perf_counter()
    _work(sys.argv[1], Path(sys.argv[2]))
    seconds = time.perf_counter() - start
    status = Path("/proc/self/status").read_text()  # getrusage's maximum would include the parent's before exec
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"seconds": seconds, "peak": peak / 1024}))

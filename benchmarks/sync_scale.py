"""Weight sync from 10 million to 7 billion weights against the cost model, and the model alone up to a trillion.

The model's rates come from one size, 100 million weights; the other sizes show how well it extrapolates. Publisher and
follower run in processes of their own.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.cost_model import STEPS, Model, Rates
from benchmarks.page_cache import forget
from benchmarks.plots import curves
from benchmarks.record import RESULTS, Row, write
from rst import SparseDelta
from rst.files.atomic import sync_to_disk
from rst.files.safetensors_writer import specs_of
from rst.numerics.difference import count_changed
from rst.numerics.exactness import as_bytes
from rst.sync import Follower, Link, Publisher, read_pointer
from rst.sync.anchor import write_anchor
from rst.sync.chain import anchor_name, delta_name
from rst.sync.store import open_store

_SIDE = 2048
_DENSITY = 0.01
_CALIBRATED = 100e6
_SIZES = (10e6, _CALIBRATED, 1e9, 7e9)
_PUBLISHED = 3
_IN_MEMORY = 2e9  # weights; above, the publisher's copy is in a mapped file
_BEYOND = (Model(70e9, ranks=16), Model(405e9, ranks=64), Model(1e12, ranks=256))


def run(quick: bool, folder: Path = RESULTS) -> Path:
    """Measure both sides at every size, fit the rates at one of them, and compare."""
    sizes = (10e6,) if quick else _SIZES
    measured: dict[float, dict[str, float]] = {}
    skipped = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as name:
            if shutil.disk_usage(name).free < 5 * size:
                skipped.append(Row(_label(size), {"skipped": f"needs {int(5 * size) >> 30} GiB of disk"}))
                continue
            measured[size] = _child("publish", size, Path(name)) | _child("follow", size, Path(name))
    fitted = _CALIBRATED if _CALIBRATED in measured else sizes[0]
    rates = _rates(fitted, measured[fitted])
    rows = [_row(size, found, rates) for size, found in measured.items()] + skipped
    title = "Weight sync of bf16 models, 1 % changed a step: measured, and as the cost model says"
    notes = [
        f"The rates are those of {_label(fitted)}: compare {rates.compare / 1e9:.1f} GB/s, keep "
        f"{rates.keep / 1e6:.1f} M changed weights/s, encode {rates.encode / 1e6:.1f} M/s, write "
        f"{rates.write / 1e9:.2f} GB/s with fsync, fetch {rates.fetch / 1e9:.2f} GB/s, read {rates.read / 1e9:.2f} "
        f"GB/s, apply {rates.apply / 1e6:.1f} M/s, take {rates.take / 1e9:.2f} GB/s. benchmarks/cost_model.py has the "
        "formulas and says what each rate is; keep, apply and take are what the other parts leave of the whole.",
        f"Tensors of {_SIDE} x {_SIDE}. Median of {_PUBLISHED} steps; each changed weight moves by -2 to 2 units in "
        "the last place. Above 2 billion weights the publisher's copy is mapped from a file, read from the disk and "
        "written back at each step: at 1 % every page of it changes.",
        "Every state that the follower reached has the publisher's fingerprint.",
        "Start: a new publisher, its copy and the first anchor. Write and read its bytes: as many as the anchor has, "
        "to the same disk with fsync, and back from it. Join: a follower of other weights takes the anchor. It keeps "
        "what it replaces until it has all, so it needs the weights' bytes twice; above 2 billion it is not measured.",
    ]
    curves(
        [row for row in rows if "skipped" not in row.numbers],
        "billion weights",
        [("seconds", ["publish s", "model: publish s"]), ("seconds", ["follow s", "model: follow s"])],
        title,
        folder / "sync_scale.png",
    )
    _write_extrapolation(rates, fitted, folder)
    return write("sync_scale", title, rows, notes, folder=folder)


def _row(size: float, found: dict[str, float], rates: Rates) -> Row:
    density = found["changed"] / found["weights"]
    model = Model(found["weights"], density=density, copy_on_disk=size >= _IN_MEMORY)
    return Row(
        _label(size),
        {
            "billion weights": round(found["weights"] / 1e9, 3),
            "bytes a changed weight": round(found["bytes"] / found["changed"], 3),
            "model: bytes": round(model.step_bytes / model.changed, 3),
            "publish s": round(found["publish"], 3),
            "model: publish s": round(model.publish_seconds(rates), 3),
            "follow s": round(found["follow"], 3),
            "model: follow s": round(model.follow_seconds(rates), 3),
            "start s": round(found["start"], 2),
            "model: start s": round(model.start_seconds(rates), 2),
            "write and read its bytes, s": round(found["plain"], 2),
            "join s": round(found["join"], 2) if "join" in found else None,
        },
    )


def _write_extrapolation(rates: Rates, fitted: float, folder: Path) -> None:
    rows = [
        Row(
            f"{model.weights / 1e9:,.0f} billion weights, {model.ranks} ranks",
            {
                "weights, GB": round(model.bytes / 1e9),
                "a step, GB": round(model.step_bytes / 1e9, 2),
                "publish s, a chain a rank": round(model.publish_seconds(rates), 1),
                "publish s, one delta": round(model.publish_seconds(rates, one_delta=True), 1),
                "follow s": round(model.follow_seconds(rates), 1),
                "anchor s": round(model.anchor_seconds(rates), 1),
                "start s": round(model.start_seconds(rates), 1),
                "copy a rank, GB": round(model.bytes / model.ranks / 1e9, 1),
            },
        )
        for model in _BEYOND
    ]
    notes = [
        f"Not measured: the cost model with the rates of {_label(fitted)} on this machine's processor, each rank with "
        "a machine and a disk of its own. A GPU compares faster; encoding runs on the processor there too.",
        "One delta: the first process encodes what all have changed. It is what then takes the time.",
    ]
    title = "Weight sync beyond what was measured: the cost model alone"
    write("sync_scale", title, rows, notes, part="extrapolated", folder=folder)


def _rates(size: float, found: dict[str, float]) -> Rates:
    model = Model(found["weights"], density=found["changed"] / found["weights"])
    return Rates(
        compare=2 * model.bytes / found["compare"],
        keep=found["changed"] / (found["publish"] - found["compare"] - found["encode"]),
        encode=found["changed"] / found["encode"],
        write=model.bytes / found["write"],
        fetch=model.bytes / found["fetch"],
        read=found["bytes"] / found["read"],
        apply=found["changed"] / (found["follow"] - found["read"]),
        take=model.bytes / (found["start"] - found["write"]),
    )


def _label(size: float) -> str:
    return f"{size / 1e9:g} billion weights"


def _weights(size: float) -> dict[str, Tensor]:
    pool = (torch.randn(_SIDE * _SIDE + 1000, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    count = max(1, round(size / _SIDE**2))
    return {f"layers.{i}.weight": pool[i % 1000 :][: _SIDE * _SIDE].clone().view(_SIDE, _SIDE) for i in range(count)}


def _train(weights: dict[str, Tensor], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    moves = torch.tensor(list(STEPS), dtype=torch.int16)
    odds = torch.tensor(list(STEPS.values()))
    for weight in weights.values():
        flat = weight.view(-1).view(torch.int16)
        positions = torch.randint(flat.numel(), (int(flat.numel() * _DENSITY),), generator=generator)
        chosen = torch.multinomial(odds, positions.numel(), replacement=True, generator=generator)
        flat[positions] += moves[chosen]


def _publish(size: float, folder: Path) -> dict[str, float]:
    weights = _weights(size)
    start = time.perf_counter()
    storage = "cpu" if size < _IN_MEMORY else "mmap"
    publisher = Publisher(weights, folder / "chain", anchor_every=1 << 30, base_storage=storage)
    started, seconds = time.perf_counter() - start, []
    plain = _write_and_read(weights, folder / "plain")
    for step in range(_PUBLISHED):
        _train(weights, step)
        start = time.perf_counter()
        published = publisher.publish()
        seconds.append(time.perf_counter() - start)
    found = {"weights": published.weights, "changed": published.changed, "bytes": published.delta_bytes}
    found |= {"publish": sorted(seconds)[_PUBLISHED // 2], "start": started, "plain": plain}
    return found | (_parts(weights, folder) if size <= _CALIBRATED else {})


def _parts(weights: dict[str, Tensor], folder: Path) -> dict[str, float]:
    """Seconds of the parts that the rates are made from."""
    delta = SparseDelta.load(folder / "chain" / delta_name(_PUBLISHED))
    copies = [weight.clone() for weight in weights.values()]
    store, last = open_store(folder / "parts"), read_pointer(open_store(folder / "chain"))
    link = Link(last.chain, last.step, last.step, last.state, last.state)
    specs = specs_of(weights)
    return {
        "compare": _seconds(lambda: count_changed(zip(copies, weights.values(), strict=True))),
        "encode": _seconds(lambda: delta.save(folder / "again.safetensors", "packed")),
        "write": _seconds(lambda: write_anchor(store, link, specs, (weights[name] for name in specs))),
        "fetch": _seconds(lambda: _read_from_disk(folder / "parts" / anchor_name(last.step))),
        "read": _seconds(lambda: SparseDelta.load(folder / "chain" / delta_name(_PUBLISHED))),
    }


def _write_and_read(weights: dict[str, Tensor], path: Path) -> float:
    start = time.perf_counter()
    with path.open("wb") as file:
        for weight in weights.values():
            file.write(as_bytes(weight).numpy().data)
    sync_to_disk(path)
    _read_from_disk(path)
    seconds = time.perf_counter() - start
    path.unlink()
    return seconds


def _read_from_disk(path: Path) -> None:
    forget(path)
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(1 << 24)
        while file.readinto(buffer):
            pass


def _follow(size: float, folder: Path) -> dict[str, float]:
    follower = Follower(_weights(size), folder / "chain")
    start = time.perf_counter()
    assert follower.update().step == _PUBLISHED
    seconds = (time.perf_counter() - start) / _PUBLISHED
    if size >= _IN_MEMORY:
        return {"follow": seconds}
    del follower
    others = {name: torch.zeros_like(weight) for name, weight in _weights(size).items()}
    start = time.perf_counter()
    joining = Follower(others, folder / "chain")
    joining.update()
    joined = time.perf_counter() - start - seconds * _PUBLISHED
    return {"follow": seconds, "join": joined}


def _seconds(work: Callable[[], object]) -> float:
    """The median of three runs after one to warm up."""
    work()
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return sorted(taken)[1]


def _child(task: str, size: float, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.sync_scale", task, str(size), str(folder)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    work = {"publish": _publish, "follow": _follow}[sys.argv[1]]
    print(json.dumps(work(float(sys.argv[2]), Path(sys.argv[3]))))

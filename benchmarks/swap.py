"""Changing the active domain of a ViT-B/16 in memory and from a file, against a reload and PEFT's merge and unmerge."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks import swap_peft, vit_b_16
from benchmarks.plots import bars
from benchmarks.record import RESULTS, Row, write
from benchmarks.swap_bank import bank_rows, on_and_off
from benchmarks.timing import Timing, race
from rst import SparseDelta, export
from rst.numerics.exactness import bit_equal

_SCATTERS = "limit: two scatters a parameter, on and off"
_LOAD_FILE = "limit: safetensors' load_file of the coo file"
_UNCHECKED = "limit: load_file, one gather and two scatters a parameter"


def run(quick: bool, folder: Path = RESULTS) -> Path:
    """Measure, and check that every swap of ours leaves the tuned bits and then the base's."""
    base = vit_b_16.weights()
    if quick:
        base = {name: tensor for name, tensor in base.items() if "resblocks.0" in name}
    states = [vit_b_16.tuned(base, density=1e-3, seed=seed) for seed in (1, 2)]
    deltas = [export(base, state) for state in states]
    live = vit_b_16.module(base)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        files = {
            encoding: [scratch / f"{encoding}-{i}.safetensors" for i in range(2)] for encoding in ("coo", "packed")
        }
        for encoding, paths in files.items():
            for delta, path in zip(deltas, paths, strict=True):
                delta.save(path, encoding=encoding)
        save_file(states[0], scratch / "whole.safetensors")
        prepared = [delta.prepare(live) for delta in deltas]
        contenders: dict[str, Callable[[], object]] = {
            "reload of the whole model from the page cache": lambda: _reload(live, scratch / "whole.safetensors"),
            **swap_peft.contenders(base, scratch),
        }
        timings = race(contenders, rounds=3 if quick else 15)
        live.load_state_dict(base)
        ours: dict[str, Callable[[], object]] = {
            _SCATTERS: _scatter_alone(live, deltas[0]),
            "rst: prepared, on and off": lambda: on_and_off(prepared[0]),
            "rst: prepare, on and off": lambda: on_and_off(deltas[0].prepare(live)),
            "rst: save a coo file": lambda: deltas[0].save(files["coo"][0]),
            "rst: save a packed file": lambda: deltas[0].save(files["packed"][0], encoding="packed"),
            _LOAD_FILE: lambda: load_file(files["coo"][0]),
            "rst: load a coo file": lambda: SparseDelta.load(files["coo"][0]),
            "rst: load a packed file": lambda: SparseDelta.load(files["packed"][0]),
            "rst: from a coo file, on and off": lambda: on_and_off(SparseDelta.load(files["coo"][0]).prepare(live)),
            "rst: from a packed file, on and off": lambda: on_and_off(
                SparseDelta.load(files["packed"][0]).prepare(live)
            ),
            _UNCHECKED: _load_and_scatter(live, files["coo"][0]),
        }
        timings |= race(ours, rounds=3 if quick else 200)
        for one, state in zip(prepared, states, strict=True):
            with one:
                _check(live, state)
            _check(live, base)
        bank = bank_rows(live, scratch, adapters=8 if quick else 1000)
        _check(live, base)
    reload = timings["reload of the whole model from the page cache"].median
    rows = [
        Row(
            name,
            {
                "milliseconds": round(timing.median * 1e3, 2),
                "best": round(timing.best * 1e3, 2),
                "times faster than a reload": round(reload / timing.median, 1),
                "times two scatters": _times(timing, timings[_SCATTERS], name in ours),
                "times load_file": _times(timing, timings[_LOAD_FILE], name in ours),
                "times load_file and scatters": _times(timing, timings[_UNCHECKED], "from a" in name),
            },
        )
        for name, timing in timings.items()
    ]
    weights = sum(tensor.numel() for tensor in base.values())
    title = f"Swap of the active domain: {weights:,} float32 weights, {deltas[0].nnz:,} of them changed"
    notes = [
        "On and off are two swaps: the base's values are checked, exchanged for the tuned ones, and put back.",
        "Ours and the limits run in one race, on the same weights, in another order each round.",
        "From a file: read, digest verified, base verified at the changed positions, then on and off. That is three "
        "passes over the changed places, most of them on a page of memory of their own. The limit with a gather and "
        "two scatters makes these three, and verifies nothing.",
        "PEFT: LoRA r=4 and SHiRA r=4 on the 48 linear layers of the same shapes: save_pretrained, load_adapter and "
        "delete_adapter, merge_adapter and unmerge_adapter.",
        "A save of ours waits until the disk has the file (fsync) and renames it; PEFT's does neither.",
    ]
    bars(rows, "milliseconds", title, folder / "swap.png")
    bank_notes = [
        "Every adapter is used once a row, in one random order. A use is on and off. First use: read, verified, "
        "prepared, on and off. Used again: what was prepared is kept in memory.",
        "Not in the page cache: the system is told to forget the file first.",
    ]
    bank_title = f"Swap: milliseconds to use one of {8 if quick else 1000:,} adapters on disk, percentiles"
    write("swap", bank_title, bank, bank_notes, part="bank", folder=folder)
    return write("swap", title, rows, notes, folder=folder)


def _times(timing: Timing, limit: Timing, in_its_race: bool) -> float | None:
    return round(timing.median / limit.median, 2) if in_its_race else None


def _scatter_alone(live: nn.Module, delta: SparseDelta) -> Callable[[], None]:
    """Write the tuned values, then the base's, and check nothing."""
    flats = _flat(live)
    positions = {name: change.indices.long() for name, change in delta.items()}
    old = {name: flats[name][where] for name, where in positions.items()}
    new = {name: old[name] + change.values for name, change in delta.items()}

    def on_and_off() -> None:
        for values in (new, old):
            for name, where in positions.items():
                flats[name].scatter_(0, where, values[name])

    return on_and_off


def _load_and_scatter(live: nn.Module, path: Path) -> Callable[[], None]:
    """Read a coo file of residuals, and exchange values back and forth without a check or a digest."""
    flats = _flat(live)

    def swap() -> None:
        arrays = load_file(path)
        for name, flat in flats.items():
            if f"{name}.indices" in arrays:
                positions = arrays[f"{name}.indices"].long()
                old = flat[positions]
                flat.scatter_(0, positions, old + arrays[f"{name}.values"])
                flat.scatter_(0, positions, old)

    return swap


def _flat(live: nn.Module) -> dict[str, torch.Tensor]:
    """The weights that ours are measured on, so that caches have as much of them for the limits."""
    return {name: parameter.detach().view(-1) for name, parameter in live.named_parameters()}


@torch.no_grad()
def _reload(live: nn.Module, path: Path) -> None:
    live.load_state_dict(load_file(path))


def _check(live: nn.Module, state: dict[str, torch.Tensor]) -> None:
    for name, parameter in live.named_parameters():
        assert bit_equal(parameter.data, state[name]), name

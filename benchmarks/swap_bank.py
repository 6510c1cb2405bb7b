"""A thousand adapters on disk, served from one model: what the first use of one costs, and every use after it."""

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.page_cache import forget
from benchmarks.record import Row
from rst import ParameterDelta, SparseDelta
from rst.delta.parameter_delta import BaseDigests, index_dtype
from rst.live.apply import PreparedDelta
from rst.numerics.fingerprint import digest

_DENSITY, _TAU = 1e-3, 1e-6


def bank_rows(live: nn.Module, scratch: Path, adapters: int) -> list[Row]:
    """Percentiles of milliseconds, one row a way to use one of `adapters` that lie in files; uses in random order."""
    files = list(_write(dict(live.named_parameters()), scratch, adapters))
    order = random.Random(0).sample(range(adapters), adapters)
    prepared: dict[int, PreparedDelta] = {}

    def first_use(number: int) -> None:
        prepared[number] = SparseDelta.load(files[number]).prepare(live)
        on_and_off(prepared[number])

    uses: dict[str, Callable[[int], object]] = {
        "limit: safetensors' load_file, not in the page cache": lambda number: load_file(files[number]),
        "rst: first use, not in the page cache": first_use,
        "limit: safetensors' load_file": lambda number: load_file(files[number]),
        "rst: first use": first_use,
        "rst: used again": lambda number: on_and_off(prepared[number]),
    }
    rows = []
    for name, use in uses.items():
        milliseconds = []
        for number in order:
            if "not in the page cache" in name:
                forget(files[number])
            start = time.perf_counter()
            use(number)
            milliseconds.append(1e3 * (time.perf_counter() - start))
        found = np.percentile(milliseconds, [50, 90, 99])
        rows.append(Row(name, {f"p{at}": round(float(one), 2) for at, one in zip((50, 90, 99), found, strict=True)}))
    kept = sum(one.nbytes for one in prepared.values()) / adapters
    for row in rows:
        row.numbers["MB kept for each adapter"] = round(kept / 1e6, 2) if "again" in row.name else None
    return rows


def _write(weights: dict[str, Tensor], folder: Path, adapters: int) -> Iterator[Path]:
    whole = {name: digest(weight.detach()) for name, weight in weights.items()}
    generator = torch.Generator().manual_seed(0)
    for number in range(adapters):
        changes = {}
        for name, weight in weights.items():
            flat = weight.detach().reshape(-1)
            count = max(1, round(_DENSITY * flat.numel()))
            positions = torch.randint(flat.numel(), (count,), generator=generator).unique()
            origin = flat[positions]
            target = origin + _TAU * (1 + torch.empty_like(origin).exponential_(generator=generator))
            digests = BaseDigests(whole[name], digest(origin))
            changes[name] = ParameterDelta.at(
                positions.to(index_dtype(flat.numel())), origin, target, weight.shape, digests
            )
        path = folder / f"bank-{number}.safetensors"
        SparseDelta(changes).save(path)
        yield path


def on_and_off(prepared: PreparedDelta) -> None:
    """Put a delta into the weights, and take it out again."""
    with prepared:
        pass

"""A load test with many clients against a running server: a table, and a histogram of latencies.

    python -m examples.serving.load_test --url http://127.0.0.1:8000 --requests 2000 --clients 8

Adapters are requested by a Zipf distribution: the r-th most popular one with probability proportional to 1/r.
"""

import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import torch
import typer
from rich.console import Console
from rich.table import Table
from safetensors.torch import save

PERCENTS = (50, 90, 99)


@dataclass(frozen=True)
class Load:
    """What was asked, and what came of it.

    Attributes:
        milliseconds: what each request took, as its client saw it, sorted.
        seconds: the whole run.
        bank: the server's counts during the run.
        adapters: how many different ones were asked for.
    """

    milliseconds: Sequence[float]
    seconds: float
    bank: dict[str, int]
    adapters: int

    def percentile(self, percent: float) -> float:
        """The latency that so many percent of the requests did not exceed."""
        return self.milliseconds[min(int(percent / 100 * len(self.milliseconds)), len(self.milliseconds) - 1)]


def run(url: str, requests: int, clients: int, shape: Sequence[int], seed: int = 0) -> Load:
    """Send `requests` over `clients` connections at once.

    Raises:
        httpx.HTTPError: the server cannot be reached or refuses a request.
    """
    with httpx.Client(base_url=url, limits=httpx.Limits(max_connections=clients), timeout=60) as client:
        names = client.get("/adapters").raise_for_status().json()
        chooser = random.Random(seed)
        chooser.shuffle(names)
        chosen = chooser.choices(names, weights=[1 / rank for rank in range(1, len(names) + 1)], k=requests)
        body = save({"inputs": torch.randn(*shape, generator=torch.Generator().manual_seed(seed))})

        def ask(name: str) -> float:
            start = time.perf_counter()
            client.post(f"/predict/{name}", content=body).raise_for_status()
            return 1000 * (time.perf_counter() - start)

        before = _bank(client)
        start = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            milliseconds = sorted(pool.map(ask, chosen))
        seconds = time.perf_counter() - start
        after = _bank(client)
    counted = {name: after[name] - before[name] for name in ("swaps", "hits", "loads", "evictions")}
    return Load(milliseconds, seconds, {**after, **counted}, len(set(chosen)))


def table(load: Load) -> Table:
    """Throughput, latencies and what the bank did."""
    rows: dict[str, str] = {
        "requests": f"{len(load.milliseconds):,}",
        "different adapters": f"{load.adapters:,}",
        "requests a second": f"{len(load.milliseconds) / load.seconds:,.1f}",
        **{f"p{percent}, ms": f"{load.percentile(percent):,.1f}" for percent in PERCENTS},
        **{name: f"{load.bank[name]:,}" for name in ("swaps", "hits", "loads", "evictions")},
        "adapters in memory": f"{load.bank['adapters']:,}",
        "bytes in memory": f"{load.bank['bytes']:,} of {load.bank['max_bytes']:,}",
    }
    result = Table("", "", show_header=False)
    for name, value in rows.items():
        result.add_row(name, value)
    return result


def draw(load: Load, path: Path) -> None:
    """Write the histogram as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.hist(load.milliseconds, bins=60)
    for percent in PERCENTS:
        axes.axvline(load.percentile(percent), color="black", linewidth=0.8, linestyle="--")
        axes.annotate(f" p{percent}", (load.percentile(percent), axes.get_ylim()[1]), va="top", fontsize=8)
    axes.set_xlabel("latency seen by a client, ms")
    axes.set_ylabel("requests")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _bank(client: httpx.Client) -> dict[str, Any]:
    counts: dict[str, Any] = client.get("/bank").raise_for_status().json()
    return counts


def main(
    url: Annotated[str, typer.Option(help="Where the server listens.")] = "http://127.0.0.1:8000",
    requests: Annotated[int, typer.Option(help="How many in all.")] = 2000,
    clients: Annotated[int, typer.Option(help="How many at once.")] = 8,
    shape: Annotated[str, typer.Option(help="Shape of the inputs of one request.")] = "1,3,64,64",
    figure: Annotated[Path, typer.Option(help="Where the histogram goes.")] = Path("outputs/serving/latency.png"),
) -> None:
    """Load a running server and report."""
    load = run(url, requests, clients, [int(size) for size in shape.split(",")])
    draw(load, figure)
    Console().print(table(load))
    print(f"wrote {figure}")


if __name__ == "__main__":
    typer.run(main)

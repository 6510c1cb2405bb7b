"""What every way to adapt the encoder costs: bytes to ship, peak memory, and seconds of one core."""

import json
import sys
import tempfile
import time
from pathlib import Path

import torch

from examples.own_process import MemoryGrowth, measure
from examples.real_vision.compare_methods import DOMAINS, chosen_rate
from examples.real_vision.few_shot import few_shot
from examples.real_vision.methods import METHODS
from examples.real_vision.network import base_model
from examples.real_vision.resuming import Records, read


def measure_all(root: Path, accuracies: Path, results: Path) -> None:
    """Train once more with each method, in a process of its own, and record what it took."""
    costs: Records = {}
    for method in METHODS:
        rate = chosen_rate(method, read(accuracies))
        costs[method] = measure("examples.real_vision.costs", method, str(rate), str(root))
        results.write_text(json.dumps(costs, indent=1) + "\n")
        print(f"{method}: {costs[method]}", flush=True)


def run(method: str, rate: float, root: Path) -> dict[str, float]:
    """Train with one thread. Peak memory is the weights and what training adds to them."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = few_shot(root, DOMAINS[0], 0).train
    model = base_model(root)
    weights = sum(weight.nbytes for weight in model.parameters())
    growth, begun = MemoryGrowth(), time.process_time()
    tuned = METHODS[method].train(model, rate, data)
    seconds, peak = time.process_time() - begun, weights + growth.peak()
    with tempfile.TemporaryDirectory() as folder:
        tuned.save(Path(folder))
        shipped = sum(path.stat().st_size for path in Path(folder).iterdir())
    return {"shipped": shipped, "peak": peak, "seconds": seconds}


if __name__ == "__main__":
    method, rate, root = sys.argv[1:]
    print(json.dumps(run(method, float(rate), Path(root))))

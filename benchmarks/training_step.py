"""The cost that the projection adds to a training step of open_clip's ViT-B-16 image encoder."""

from pathlib import Path

import torch

from benchmarks.plots import bars
from benchmarks.record import RESULTS, Row, write
from benchmarks.timing import race
from rst import ResidualSparseTrainer, RSTConfig


def run(quick: bool, folder: Path = RESULTS) -> Path:
    """Measure steps with and without the trainer, and the trainer's share."""
    import open_clip

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-16").visual.to(device)
    images = torch.randn(2 if quick else 32, 3, 224, 224, device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=3e-6, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        model(images).square().sum().backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    storages = ("device", "mmap") if device.type == "cpu" else ("device", "cpu")
    trainers = {
        storage: ResidualSparseTrainer(model, RSTConfig(threshold=1e-6, base_storage=storage)) for storage in storages
    }
    contenders = {"one training step, batch 32": step}
    contenders |= {f"rst: projection, w0 in {where}": trainer.select for where, trainer in trainers.items()}
    timings = race(contenders, rounds=1 if quick else 5)
    whole = timings["one training step, batch 32"].median
    rows = [
        Row(
            name,
            {
                "milliseconds": round(timing.median * 1e3, 1),
                "share of a step": f"{timing.median / whole:.2%}",
            },
        )
        for name, timing in timings.items()
    ]
    notes = ["SGD with momentum, float32. w0 costs one copy of the tracked weights, in the place named."]
    title = f"Training step of ViT-B-16 on {device.type}"
    bars(rows, "milliseconds", title, folder / "training_step.png")
    return write("training_step", title, rows, notes, folder=folder)

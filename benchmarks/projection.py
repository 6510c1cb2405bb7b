"""Eq. 17 on all weights of a ViT-B/16, against the paper's code, `torch.where` and the speed of memory."""

from pathlib import Path

import torch
from torch import Tensor

from benchmarks import vit_b_16
from benchmarks.plots import bars
from benchmarks.record import RESULTS, Row, write
from benchmarks.timing import race
from rst.numerics import kernels
from rst.training.projection import choose_projection
from rst.training.projection_compiled import has_compiler, project_compiled
from rst.training.projection_eager import project_eager
from rst.training.sampled_boundary import sampled_boundary
from rst.training.selection import boundary

TAU = 1e-6
RATIO = 1e-3
ESTIMATE = "rst: where the top 0.1 % ends, estimated (a step with ratio= adds it to the projection)"


def run(quick: bool, folder: Path = RESULTS) -> Path:
    """Measure, and check that every contender leaves the same bits."""
    base = vit_b_16.weights()
    if quick:
        base = {name: tensor for name, tensor in base.items() if "resblocks.0" in name}
    state = vit_b_16.tuned(base, density=1e-3)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tuned = [tensor.to(device) for tensor in state.values()]
    origin = [tensor.to(device) for tensor in base.values()]
    spare = [torch.empty_like(tensor) for tensor in tuned]
    pairs = list(zip(tuned, origin, strict=True))

    contenders = {
        "memory: add of two into a third (3 streams)": lambda: _sync(_three_streams(pairs, spare)),
        "paper: masks as floats": lambda: _sync(_paper(pairs)),
        "torch.where": lambda: _sync(_where(pairs)),
        "rst eager": lambda: _sync(project_eager(pairs, TAU)),
    }
    if has_compiler(device):
        contenders["rst compiled"] = lambda: _sync(project_compiled(pairs, TAU))
    if kernels.run_on(device):
        in_one_launch = choose_projection(tuned)
        contenders["rst by Triton's kernel"] = lambda: _sync(in_one_launch(pairs, TAU))
    if device.type == "cpu":
        stepped = {name: tensor + 1e-4 * torch.randn_like(tensor) for name, tensor in base.items()}
        contenders[ESTIMATE] = lambda: sampled_boundary(stepped, base, RATIO, step=1)
        contenders["rst: where the top 0.1 % ends, exactly (at the export)"] = lambda: boundary(stepped, base, RATIO)
    wanted = [torch.where((wt - w0).abs() > TAU, wt, w0) for wt, w0 in pairs]
    timings = race(contenders, rounds=3 if quick else 25)
    assert all(torch.equal(wt, right) for wt, right in zip(tuned, wanted, strict=True))

    limit = timings["memory: add of two into a third (3 streams)"].median
    paper = timings["paper: masks as floats"].median
    weights = sum(tensor.numel() for tensor in tuned)
    rows = [
        Row(
            name,
            {
                "milliseconds": round(timing.median * 1e3, 1),
                "best": round(timing.best * 1e3, 1),
                "times the limit": round(timing.median / limit, 2),
                "times faster than the paper's": round(paper / timing.median, 1),
            },
        )
        for name, timing in timings.items()
    ]
    title = f"Projection (Eq. 17) of {weights:,} float32 weights, 0.1 % of them changed, on {device.type}"
    notes = ["The paper's code is written out from its description: two float masks and two products."]
    if ESTIMATE in timings:
        projection = min(timing.median for name, timing in timings.items() if name.startswith("rst "))
        share = 1 + timings[ESTIMATE].median / projection
        notes.append(f"A step that keeps a share costs {share:.2f} times one that keeps to a threshold.")
    bars(rows, "milliseconds", title, folder / "projection.png")
    return write("projection", title, rows, notes, folder=folder)


def _sync(result: object) -> object:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result


def _three_streams(pairs: list[tuple[Tensor, Tensor]], spare: list[Tensor]) -> None:
    for (wt, w0), out in zip(pairs, spare, strict=True):
        torch.add(wt, w0, out=out)


@torch.no_grad()
def _paper(pairs: list[tuple[Tensor, Tensor]]) -> None:
    for wt, w0 in pairs:
        moved = ((wt - w0).abs() > TAU).float()
        stayed = ((wt - w0).abs() <= TAU).float()
        wt.copy_(wt * moved + w0 * stayed)


@torch.no_grad()
def _where(pairs: list[tuple[Tensor, Tensor]]) -> None:
    for wt, w0 in pairs:
        wt.copy_(torch.where((wt - w0).abs() > TAU, wt, w0))

"""How deep the main paths go: who reads one, or a traceback out of one, holds no more than so many functions in mind.

A frame is a call of a named function of `rst`. Comprehensions, generator expressions and lambdas count as part of the
function that they are written in; torch's functions, and other threads, do not count.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import rst
from rst import ResidualSparseTrainer, RSTConfig, RSTModel, SparseDelta, export, merge
from rst.delta.sparse_delta import Encoding
from rst.sync import Follower, Publisher

ROOT = str(Path(rst.__file__).parent)
Call = Callable[[], object]


def deepest_stack(call: Call) -> list[str]:
    """The named functions of `rst` that stand on one another, outermost first, where `call` goes deepest."""
    deepest: list[str] = []

    def look(frame: FrameType | None, event: str, _: object) -> None:
        nonlocal deepest
        stack = []
        while event == "call" and frame:
            code, frame = frame.f_code, frame.f_back
            if code.co_filename.startswith(ROOT) and not code.co_name.startswith("<"):
                stack.append(f"{Path(code.co_filename).relative_to(ROOT)}:{code.co_qualname}")
        deepest = max(deepest, stack[::-1], key=len)

    sys.setprofile(look)
    try:
        call()
    finally:
        sys.setprofile(None)
    return deepest


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))


def trained(config: RSTConfig) -> tuple[ResidualSparseTrainer, torch.optim.Optimizer]:
    tuned = model()
    trainer = ResidualSparseTrainer(tuned, config)
    optimizer = torch.optim.SGD(tuned.parameters(), lr=0.1)
    trainer.attach(optimizer)
    tuned(torch.randn(4, 4)).square().mean().backward()
    return trainer, optimizer


def delta() -> SparseDelta:
    return export(model().state_dict(), model(1).state_dict())


def step_of(config: RSTConfig) -> Call:
    return trained(config)[1].step


def export_of_a_trainer(_: Path) -> Call:
    trainer, optimizer = trained(RSTConfig(modules_to_save=["2"]))
    optimizer.step()
    return trainer.export


def merge_of_files(folder: Path, encoding: Encoding) -> Call:
    save_file(model().state_dict(), folder / "base.safetensors")
    delta().save(folder / "delta.safetensors", encoding=encoding)
    return lambda: merge(folder / "base.safetensors", folder / "delta.safetensors", folder / "tuned.safetensors")


def prepared_delta(_: Path) -> Call:
    live, change = model(), delta()
    return lambda: change.prepare(live)


def added_adapter(_: Path) -> Call:
    live, adapter = RSTModel(model()), delta()
    return lambda: live.add_adapter("other", adapter)


def update(folder: Path) -> Call:
    leader, following = model(), model()
    publisher = Publisher(leader, folder, encoding="packed")
    follower = Follower(following, folder)
    with torch.no_grad():
        leader[0].weight.mul_(1.5)
    publisher.publish()
    return follower.update


@pytest.mark.parametrize(
    ("prepare", "limit"),
    [
        pytest.param(lambda _: step_of(RSTConfig(threshold=1e-3)), 6, id="optimizer.step"),
        pytest.param(lambda _: step_of(RSTConfig(select="top", ratio=0.1)), 6, id="optimizer.step, top"),
        pytest.param(lambda _: step_of(RSTConfig(select="bias")), 6, id="optimizer.step, bias"),
        pytest.param(export_of_a_trainer, 7, id="trainer.export"),
        pytest.param(lambda folder: merge_of_files(folder, "coo"), 8, id="merge"),
        pytest.param(lambda folder: merge_of_files(folder, "packed"), 8, id="merge, packed"),
        pytest.param(prepared_delta, 6, id="delta.prepare"),
        pytest.param(added_adapter, 8, id="add_adapter"),
        pytest.param(update, 9, id="Follower.update"),
    ],
)
def test_a_main_path_is_a_few_functions_deep(prepare: Callable[[Path], Call], limit: int, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # work in other threads would not be seen
    try:
        stack = deepest_stack(prepare(tmp_path))
    finally:
        torch.set_num_threads(threads)
    assert stack, "nothing of rst was called"
    assert len(stack) <= limit, "\n".join(stack)

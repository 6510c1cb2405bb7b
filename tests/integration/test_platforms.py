"""Systems other than Linux, as far as it can play them, and processes that begin anew instead of as a fork."""

import copy
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rst import ResidualSparseTrainer, RSTConfig, RSTModel, SparseDelta, export, get_rst_model, merge
from rst.sync import Follower, Publisher
from tests.integration import without_posix


@pytest.mark.skipif(sys.platform != "linux", reason="takes away what Linux has")
def test_every_command_works_without_what_only_posix_has(tmp_path: Path) -> None:
    command = [sys.executable, "-m", without_posix.__name__, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(without_posix.__file__).parents[2])}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]
    assert ran.stdout.endswith("all done\n")


def _work(base: dict[str, Tensor], config: RSTConfig, chain: Path, tuned: Path) -> tuple[SparseDelta, int, str]:
    """In another process: train a step, export it, publish it, save it."""
    model = nn.Linear(5, 3)
    model.load_state_dict(base)
    trainer = ResidualSparseTrainer(model, config)
    publisher = Publisher(model, chain)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    trainer.attach(optimizer)
    model(torch.ones(2, 5)).square().sum().backward()
    optimizer.step()
    published = publisher.publish()
    torch.save(model.state_dict(), tuned)
    return trainer.export(), published.step, published.state


def _switched(model: RSTModel, inputs: Tensor) -> tuple[Tensor, Tensor]:
    on = model(inputs).detach()
    with model.disable_adapter():
        return on, model(inputs).detach()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_deltas_models_and_chains_pass_between_spawned_processes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = {name: tensor.clone() for name, tensor in nn.Linear(5, 3).state_dict().items()}
    served = {name: tensor.clone() for name, tensor in base.items()}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        config, tuned_file = RSTConfig(threshold=0.01), tmp_path / "tuned.pt"
        delta, step, state = pool.submit(_work, base, config, tmp_path / "chain", tuned_file).result()
        tuned = torch.load(tuned_file, weights_only=True)
        assert delta.nnz == export(base, tuned).nnz
        merged = merge(base, delta)
        assert all(torch.equal(merged[name], tuned[name]) for name in tuned)
        follower = Follower(served, tmp_path / "chain")
        assert (follower.update().step, follower.state) == (step, state)
        assert all(torch.equal(served[name], tuned[name]) for name in tuned)
        wrapped = get_rst_model(nn.Linear(5, 3), RSTConfig(threshold=0.0))
        off = wrapped(torch.ones(2, 5)).detach()
        with torch.no_grad():
            wrapped.base_model.weight += 1
        on = wrapped(torch.ones(2, 5)).detach()
        found = pool.submit(_switched, wrapped, torch.ones(2, 5)).result()
        assert torch.equal(found[0], on)
        assert torch.equal(found[1], off)


class _WithoutFloat64(TorchDispatchMode):
    """As on Apple's and some of Intel's GPUs."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for found in tree_leaves(out):
            if isinstance(found, Tensor) and found.dtype in (torch.float64, torch.complex128):
                raise TypeError(f"{function} makes {found.dtype}, which the device lacks")
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "settings",
    [
        {"threshold": 1e-3},
        {"ratio": 0.1},
        {"threshold": 1e-3, "base_storage": "sparse"},
        {"select": "bias"},
    ],
    ids=str,
)
def test_training_and_switching_need_no_float64(dtype: torch.dtype, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    with _WithoutFloat64():
        wrapped = get_rst_model(nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 2)).to(dtype), RSTConfig(**settings))
        base = copy.deepcopy(wrapped.base_model)
        inputs = torch.ones(4, 40, dtype=dtype)
        off = wrapped(inputs).detach()
        optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.5)
        wrapped.trainer.attach(optimizer)
        for _ in range(2):
            wrapped(inputs).float().square().sum().backward()
            optimizer.step()
        delta = wrapped.trainer.export()
        on = wrapped(inputs).detach()
        with wrapped.disable_adapter():
            assert torch.equal(wrapped(inputs), off)
        delta.apply(base)
        mixed = wrapped.eval()(inputs, adapter_names=["default", "__base__"] * 2)
    assert delta.nnz
    assert not torch.equal(on, off)
    assert torch.equal(base(inputs), on)
    assert torch.allclose(mixed[0].float(), on[0].float(), atol=1e-2, rtol=1e-2)

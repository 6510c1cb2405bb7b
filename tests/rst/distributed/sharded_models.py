"""A small model, ways to shard it, and the programs that the tests run in every process."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from rst import Constant, ResidualSparseTrainer, RSTConfig, RSTError, SparseDelta, export
from rst.distributed import apply_sharded, export_sharded

Weights = dict[str, Tensor]


class Net(nn.Module):
    """Rows that do not divide by the number of processes, a single weight, a buffer, tied weights, a head."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Linear(6, 9, dtype=dtype)
        self.middle = nn.Linear(9, 8, dtype=dtype)
        self.again = nn.Linear(9, 8, bias=False, dtype=dtype)
        self.again.weight = self.middle.weight
        self.down = nn.Linear(8, 6, dtype=dtype)
        self.scale = nn.Parameter(torch.ones(1, dtype=dtype))
        self.head = nn.Linear(6, 3, dtype=dtype)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_((weight * 64).round() / 64)  # exact differences, so that many changes are equal

    def forward(self, inputs: Tensor) -> Tensor:
        self.seen += 1
        hidden = self.up(inputs).relu()
        hidden = (self.middle(hidden) + self.again(hidden)).relu()
        return self.head(self.down(hidden) * self.scale)


def fsdp(model: Net) -> None:
    fully_shard([model.middle, model.again])
    fully_shard(model)


def fsdp_columns(model: Net) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(model.down, mesh=mesh, shard_placement_fn=lambda weight: Shard(weight.ndim - 1))
    fully_shard(model, mesh=mesh)


def hybrid(model: Net) -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    fully_shard(model, mesh=mesh)


def tensor_parallel(model: Net) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    parallelize_module(model, mesh, {"middle": ColwiseParallel(), "down": RowwiseParallel()})
    model.again.weight = model.middle.weight  # parallelize_module unties


def fsdp_and_tensor_parallel(model: Net) -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    parallelize_module(model, mesh["tensor"], {"middle": ColwiseParallel(), "down": RowwiseParallel()})
    model.again.weight = model.middle.weight  # parallelize_module unties
    fully_shard(model, mesh=mesh["data"])


def data_and_tensor_parallel(model: Net) -> None:
    """Plain data parallelism around tensor parallelism: every block is in two processes, whose mesh knows half."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    parallelize_module(model, mesh["tensor"], {"middle": ColwiseParallel(), "down": RowwiseParallel()})
    model.again.weight = model.middle.weight  # parallelize_module unties


SHARDINGS: dict[str, Callable[[Net], None]] = {
    function.__name__: function
    for function in (fsdp, fsdp_columns, hybrid, tensor_parallel, fsdp_and_tensor_parallel, data_and_tensor_parallel)
}


def gradient(name: str, weight: Tensor, step: int) -> Tensor:
    """The same in every process and program; coarse, so that many changes are equal."""
    generator = torch.Generator().manual_seed(len(name) + 1000 * step)
    return (torch.randint(-3, 4, weight.shape, generator=generator) / 8).to(weight.dtype)


def take_step(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    for name, weight in model.named_parameters():
        whole = gradient(name, weight, step)
        sharded = isinstance(weight, DTensor)
        weight.grad = distribute_tensor(whole, weight.device_mesh, weight.placements) if sharded else whole
    optimizer.step()


def plain_steps(config: RSTConfig, dtype: torch.dtype, steps: int) -> tuple[SparseDelta, Weights, int]:
    """One process: the delta, the weights, and how many have changed."""
    model = Net(dtype)
    trainer, optimizer = _trainer(model, config)
    for step in range(steps):
        take_step(model, optimizer, step)
    return trainer.export(), dict(model.state_dict()), trainer.count_changed()


def sharded_steps(
    sharding: str, config: RSTConfig, dtype: torch.dtype, steps: int
) -> tuple[SparseDelta | None, Weights, int]:
    """Each process of a group: the same."""
    model = Net(dtype)
    SHARDINGS[sharding](model)
    trainer, optimizer = _trainer(model, config)
    for step in range(steps):
        take_step(model, optimizer, step)
    delta = export_sharded(trainer)
    return delta, whole(model), trainer.count_changed()


def _trainer(model: nn.Module, config: RSTConfig) -> tuple[ResidualSparseTrainer, torch.optim.Optimizer]:
    trainer = ResidualSparseTrainer(model, config)
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=0.125, momentum=0.5
    )  # exact products, fused or not
    trainer.attach(optimizer)
    return trainer, optimizer


def whole(model: nn.Module) -> Weights:
    state = model.state_dict()
    return {name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for name, tensor in state.items()}


def batch(step: int, half: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2 * step + half)
    return torch.randn(8, 6, generator=generator), torch.randint(3, (8,), generator=generator)


def halves(model: nn.Module, step: int, wanted: tuple[int, ...]) -> None:
    for half in wanted:
        inputs, labels = batch(step, half)
        (nn.functional.cross_entropy(model(inputs), labels) / len(wanted)).backward()


def train(model: nn.Module, config: RSTConfig, wanted: tuple[int, ...], steps: int = 4) -> ResidualSparseTrainer:
    """Real training on the given halves of every batch."""
    trainer = ResidualSparseTrainer(model, config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    trainer.attach(optimizer)
    for step in range(steps):
        optimizer.zero_grad()
        halves(model, step, wanted)
        optimizer.step()
    return trainer


def train_sharded(config: RSTConfig, **settings: Any) -> tuple[SparseDelta | None, Weights]:
    """FSDP2, each process with its half of every batch; evaluated before the export, which leaves it unsharded."""
    model = Net()
    fully_shard([model.middle, model.again], **settings)
    fully_shard(model, **settings)
    trainer = train(model, config, (dist.get_rank(),))
    with torch.no_grad():
        model.eval()(batch(0, 0)[0])
    delta = export_sharded(trainer)
    return delta, whole(model)


def train_data_parallel(config: RSTConfig) -> tuple[SparseDelta, Weights]:
    model = nn.parallel.DistributedDataParallel(Net())
    trainer = train(model, config, (dist.get_rank(),))
    return trainer.export(), dict(model.module.state_dict())


def offloaded(config: RSTConfig) -> tuple[SparseDelta | None, Weights]:
    return train_sharded(config, offload_policy=CPUOffloadPolicy(pin_memory=False))


def mixed_precision(config: RSTConfig) -> tuple[SparseDelta | None, Weights]:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=True)
    return train_sharded(config, mp_policy=policy)


def refusals() -> dict[str, str]:
    """What each mistake is told, in every process."""
    return {
        name: _refusal(work)
        for name, work in (
            ("nan", _nan),
            ("nan top", _nan_top),
            ("partial", _partial),
            ("export", _plain_export),
            ("plain", _not_sharded),
            ("more tensors", _another_tensor),
            ("other shape", _another_shape),
            ("other part", _another_part),
        )
    }


def _refusal(work: Callable[[], object]) -> str:
    try:
        work()
    except RSTError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def _with_nan(config: RSTConfig) -> ResidualSparseTrainer:
    model = Net()
    fsdp(model)
    trainer = ResidualSparseTrainer(model, config)
    if dist.get_rank() == 1:
        with torch.no_grad():
            model.up.weight.to_local()[0] = float("nan")  # type: ignore[operator]
    return trainer


def _nan() -> None:
    export_sharded(_with_nan(RSTConfig()))


def _nan_top() -> None:
    _with_nan(RSTConfig(select="top", ratio=0.1)).select()


def _partial() -> None:
    model = Net()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model.up.weight = nn.Parameter(DTensor.from_local(model.up.weight.detach(), mesh, [Partial()]))
    ResidualSparseTrainer(model, RSTConfig(target_modules=["up"]))
    raise AssertionError(model.down.weight.requires_grad)


def _plain_export() -> None:
    model = Net()
    fsdp(model)
    ResidualSparseTrainer(model).export()


def _another_tensor() -> None:
    model = Net()
    fsdp(model)
    if dist.get_rank() == 1:
        model.more = nn.Parameter(torch.ones(2))
    ResidualSparseTrainer(model)


def _another_shape() -> None:
    model = Net()
    fsdp(model)
    model.more = nn.Parameter(torch.ones(2 + dist.get_rank()))
    ResidualSparseTrainer(model)


def _another_part() -> None:
    """The first process has the rows that the last should have, and the other way round."""
    model = Net()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    rows = torch.ones(4 + dist.get_rank(), 6)
    weight = DTensor.from_local(rows, mesh, [Shard(0)], shape=torch.Size([9, 6]), stride=(6, 1))
    model.up.weight = nn.Parameter(weight)
    ResidualSparseTrainer(model)


def nothing_chosen() -> tuple[int, bool]:
    """A share too small for a single weight, beside a tensor without elements: how many moved, and are they back."""
    model = Net()
    fsdp(model)
    model.nothing = nn.Parameter(torch.empty(0, 3))
    before = whole(model)
    trainer = ResidualSparseTrainer(model, RSTConfig(select="top", ratio=1e-9))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(2.0)
    trainer.select()
    return trainer.count_changed(), all(torch.equal(found, before[name]) for name, found in whole(model).items())


def _not_sharded() -> None:
    export_sharded(ResidualSparseTrainer(Net()))


def save_halfway(folder: Path, config: RSTConfig, steps: int) -> None:
    model = Net()
    fsdp(model)
    trainer, optimizer = _trainer(model, config)
    for step in range(steps):
        take_step(model, optimizer, step)
    weights, moments = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": moments, "rst": trainer.state_dict()}, checkpoint_id=folder)


def resume(folder: Path, config: RSTConfig, start: int, end: int) -> tuple[SparseDelta | None, Weights]:
    """Continue, from another model's w0, what `save_halfway` saved."""
    model = Net()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1.0)
    fsdp(model)
    trainer, optimizer = _trainer(model, config)
    weights, moments = get_state_dict(model, optimizer)
    state: dict[str, Any] = {"model": weights, "optimizer": moments, "rst": trainer.state_dict()}
    dcp.load(state, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    trainer.load_state_dict(state["rst"])
    for step in range(start, end):
        take_step(model, optimizer, step)
    return export_sharded(trainer), whole(model)


def swaps(sharding: str, delta: SparseDelta) -> dict[str, Any]:
    """The weights with a delta on and off again, and whether the answers of a model that FSDP2 gathers follow."""
    model = Net()
    SHARDINGS[sharding](model)
    runs = "tensor" not in sharding  # tied weights cannot run in parts
    with torch.no_grad():
        before = model(batch(0, 0)[0]) if runs else 0
        handle = apply_sharded(model, delta)
        tuned = model(batch(0, 0)[0]) if runs else 1
        on = {name: tensor.clone() for name, tensor in whole(model).items()}
        handle.remove()
        after = model(batch(0, 0)[0]) if runs else 0
        with handle:
            again = model(batch(0, 0)[0]) if runs else 1
    assert not handle.applied
    answers = [torch.equal(torch.as_tensor(x), torch.as_tensor(y)) for x, y in ((before, after), (tuned, again))]
    different = not torch.equal(torch.as_tensor(before), torch.as_tensor(tuned))
    return {"on": on, "off": whole(model), "answers": all(answers) and different}


def swap_refusals(delta: SparseDelta) -> dict[str, tuple[str, bool]]:
    """What each mistake in one process is told in every one, and whether the weights are untouched."""
    told = {}
    for name, work in {"base": _other_base, "delta": _other_delta, "late": _trained_meanwhile, "moved": _moved}.items():
        model = Net()
        (tensor_parallel if name == "moved" else fsdp)(model)
        told[name] = work(model, delta)
    told["plain"] = (_refusal(lambda: apply_sharded(Net(), delta)), True)
    model = nn.Sequential(nn.Linear(6, 9))
    fully_shard(model)
    told["names"] = (_refusal(lambda: apply_sharded(model, delta)), True)
    model = Net(torch.bfloat16)
    fsdp(model)
    told["dtype"] = (_refusal(lambda: apply_sharded(model, delta)), True)
    model = Net()
    fsdp(model)
    model.register_buffer("passing", torch.zeros(2), persistent=False)
    for name, other in {"shape": {"up.weight": torch.zeros(3, 3)}, "buffer": {"passing": torch.zeros(2)}}.items():
        unfit = export(other, {key: tensor + 1 for key, tensor in other.items()})
        told[name] = _untouched(model, lambda unfit=unfit: apply_sharded(model, unfit))
    return told


def _nudge(model: Net, rank: int) -> None:
    """Change what the delta changes, in one process only."""
    if dist.get_rank() == rank:
        with torch.no_grad():
            model.up.weight.to_local().add_(0.5)  # type: ignore[operator]


def _untouched(model: Net, work: Callable[[], object]) -> tuple[str, bool]:
    before = {name: tensor.clone() for name, tensor in whole(model).items()}
    told = _refusal(work)
    return told, all(torch.equal(tensor, before[name]) for name, tensor in whole(model).items())


def _other_base(model: Net, delta: SparseDelta) -> tuple[str, bool]:
    _nudge(model, 1)
    return _untouched(model, lambda: apply_sharded(model, delta))


def _other_delta(model: Net, delta: SparseDelta) -> tuple[str, bool]:
    mine = replace(delta, dense={}) if dist.get_rank() == 1 else delta
    return _untouched(model, lambda: apply_sharded(model, mine))


def _trained_meanwhile(model: Net, delta: SparseDelta) -> tuple[str, bool]:
    handle = apply_sharded(model, delta)
    handle.remove()
    _nudge(model, 1)
    return _untouched(model, handle.apply)


def _moved(model: Net, delta: SparseDelta) -> tuple[str, bool]:
    """In one process other weights stand where the delta is on; no process takes it off then."""
    handle = apply_sharded(model, delta)
    if dist.get_rank() == 1:
        model.down.weight = nn.Parameter(model.down.weight.detach() + 1)
    told = _untouched(model, handle.remove)
    return told[0], told[1] and handle.applied


def everything_of_two(
    cases: list[tuple[str, RSTConfig, torch.dtype]], training: RSTConfig, folder: Path, delta: SparseDelta
) -> dict[str, Any]:
    """All checks of two processes, which form their group once."""
    save_halfway(folder, RESUMED, 2)
    return {
        "steps": [sharded_steps(*case, STEPS) for case in cases],
        "fsdp": train_sharded(training),
        "ddp": train_data_parallel(training),
        "offloaded": offloaded(training),
        "mixed": mixed_precision(training),
        "refusals": refusals(),
        "nothing chosen": nothing_chosen(),
        "swaps": {sharding: swaps(sharding, delta) for sharding in SWAPPED_BY_TWO},
        "swap refusals": swap_refusals(delta),
    }


def everything_of_four(
    cases: list[tuple[str, RSTConfig, torch.dtype]], folder: Path, delta: SparseDelta
) -> dict[str, Any]:
    return {
        "steps": [sharded_steps(*case, STEPS) for case in cases],
        "resumed": resume(folder, RESUMED, 2, STEPS),
        "swaps": {sharding: swaps(sharding, delta) for sharding in SWAPPED_BY_FOUR},
    }


def everything_of_one(folder: Path) -> dict[str, Any]:
    return {"resumed": resume(folder, RESUMED, 2, STEPS)}


STEPS = 3
SWAPPED_BY_TWO = ("fsdp", "fsdp_columns", "tensor_parallel")
SWAPPED_BY_FOUR = ("fsdp", "hybrid", "fsdp_and_tensor_parallel")
RESUMED = RSTConfig(ratio=Constant(0.3), total_steps=4, modules_to_save=["head"])

"""Sharded training, selection and export in two and four processes, bit for bit against one process."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rst import Constant, RSTConfig, SparseDelta, export
from rst.numerics.exactness import bit_equal
from tests.rst.distributed import sharded_models
from tests.rst.distributed.process_group import run
from tests.rst.distributed.sharded_models import RESUMED, STEPS, Net

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not hasattr(torch.cpu.Stream, "record_event"), reason="fully_shard of this torch (2.6) runs on GPUs alone"
    ),
]

Outcome = dict[str, Any]
TRAINING = RSTConfig(threshold=1e-3, modules_to_save=["head"])
CONFIGS = {
    "threshold": (RSTConfig(threshold=0.05, modules_to_save=["head"]), torch.float32),
    "threshold in bfloat16, w0 in CPU memory": (
        RSTConfig(threshold=0.05, base_storage="cpu"),
        torch.bfloat16,
    ),
    "top with ties": (RSTConfig(ratio=Constant(0.2), total_steps=9), torch.float32),
    "top with ties in bfloat16, w0 mapped": (
        RSTConfig(ratio=Constant(0.5), total_steps=9, base_storage="mmap"),
        torch.bfloat16,
    ),
    "top in float64 of some": (RSTConfig(select="top", ratio=0.01, exclude_modules=["scale"]), torch.float64),
    "bias": (RSTConfig(select="bias"), torch.float32),
}
SHORT = ("threshold in bfloat16, w0 in CPU memory", "top with ties")
OF_TWO = [("fsdp", kind) for kind in CONFIGS]
OF_TWO += [(sharding, kind) for sharding in ("fsdp_columns", "tensor_parallel") for kind in SHORT]
OF_FOUR = [("fsdp", "threshold")]
OF_FOUR += [
    (sharding, "top with ties in bfloat16, w0 mapped")
    for sharding in ("fsdp", "hybrid", "fsdp_and_tensor_parallel", "data_and_tensor_parallel")
]


@dataclass(frozen=True)
class Runs:
    """What every process of one, of two, and of four, returned."""

    one: list[Outcome]
    two: list[Outcome]
    four: list[Outcome]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder: Path = tmp_path_factory.mktemp("checkpoint")
    cases = [[(sharding, *CONFIGS[kind]) for sharding, kind in chosen] for chosen in (OF_TWO, OF_FOUR)]
    delta = swapped()
    two = run(2, sharded_models.everything_of_two, cases[0], TRAINING, folder, delta)
    four = run(4, sharded_models.everything_of_four, cases[1], folder, delta)
    return Runs(run(1, sharded_models.everything_of_one, folder), two, four)


def swapped() -> SparseDelta:
    """A delta with residuals, values that no residual reaches, and a whole head."""
    model = Net()
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sharded_models.train(model, TRAINING, (0, 1))
    with torch.no_grad():
        model.down.weight[1, 2], model.middle.weight[3, 3] = -0.0, 1e-30
    return export(base, model, modules_to_save=["head"], exclude_modules=["again", "seen"])


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert bit_equal(found[name], tensor), name


@pytest.mark.parametrize(
    ("world", "sharding", "kind"), [*((2, *case) for case in OF_TWO), *((4, *case) for case in OF_FOUR)]
)
def test_sharded_selection_and_export_equal_one_process(runs: Runs, world: int, sharding: str, kind: str) -> None:
    outcomes, cases = (runs.two, OF_TWO) if world == 2 else (runs.four, OF_FOUR)
    config, dtype = CONFIGS[kind]
    place = cases.index((sharding, kind))
    wanted, weights, changed = sharded_models.plain_steps(config, dtype, STEPS)

    for rank, outcome in enumerate(outcomes):
        delta, found, counted = outcome["steps"][place]
        assert_same(found, weights)
        assert counted == changed
        assert delta == wanted if rank == 0 else delta is None
    assert 0 < wanted.nnz < sum(weight.numel() for weight in Net().parameters())
    first: SparseDelta = outcomes[0]["steps"][place][0]
    assert list(first) == list(wanted)
    assert dict(first.config) == dict(wanted.config)


def test_equal_changes_meet_the_boundary_in_the_cases_of_top() -> None:
    config, dtype = CONFIGS["top with ties"]
    delta, _, _ = sharded_models.plain_steps(config, dtype, STEPS)
    values = torch.cat([delta[name].values.abs() for name in delta])
    assert (values == values.min()).sum() > 1


def test_training_with_fsdp_equals_one_process_bit_for_bit(runs: Runs) -> None:
    model = Net()
    wanted = sharded_models.train(model, TRAINING, (0, 1)).export()
    weights = dict(model.state_dict())
    for kind in ("fsdp", "offloaded"):
        delta, found = runs.two[0][kind]
        assert {name: delta[name] for name in delta} == {name: wanted[name] for name in wanted}, kind
        for name in weights.keys() - {"seen"}:  # counted twice a step in one process
            assert bit_equal(found[name], weights[name]), name
    assert 0 < wanted.nnz < wanted.base.weights


def test_every_process_of_ddp_exports_what_one_process_does(runs: Runs) -> None:
    wanted = sharded_models.train(Net(), TRAINING, (0, 1)).export()
    for outcome in runs.two:
        delta, _ = outcome["ddp"]
        assert {name: delta[name] for name in delta} == {name: wanted[name] for name in wanted}
        assert bit_equal(delta.dense["head.weight"], wanted.dense["head.weight"])


@pytest.mark.parametrize("kind", ["fsdp", "offloaded", "mixed"])
def test_base_plus_delta_is_the_sharded_model(runs: Runs, kind: str, tmp_path: Path) -> None:
    delta, weights = runs.two[0][kind]
    delta.save(tmp_path / "delta.safetensors")
    model = Net()
    SparseDelta.load(tmp_path / "delta.safetensors").apply(model)
    assert_same(dict(model.state_dict()), weights)
    assert 0 < delta.nnz < delta.base.weights


@pytest.mark.parametrize("world", [1, 4])
def test_a_run_of_two_processes_resumes_on_one_and_four(runs: Runs, world: int) -> None:
    wanted, weights, _ = sharded_models.plain_steps(RESUMED, torch.float32, STEPS)
    outcomes = runs.one if world == 1 else runs.four
    delta, found = outcomes[0]["resumed"]
    assert_same(found, weights)
    assert delta == wanted


@pytest.mark.parametrize(
    ("world", "sharding"),
    [(2, name) for name in sharded_models.SWAPPED_BY_TWO] + [(4, name) for name in sharded_models.SWAPPED_BY_FOUR],
)
def test_a_delta_on_and_off_a_sharded_model(runs: Runs, world: int, sharding: str) -> None:
    model, delta = Net(), swapped()
    off = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    delta.apply(model)
    on = dict(model.state_dict())
    assert any(change.exact_indices.numel() for change in delta.values())
    assert delta.dense.keys() >= {"head.weight", "head.bias"}
    for outcome in runs.two if world == 2 else runs.four:
        found = outcome["swaps"][sharding]
        for name in on.keys() - {"seen"}:  # a buffer that counts calls
            assert bit_equal(found["on"][name], on[name]), name
            assert bit_equal(found["off"][name], off[name]), name
        assert found["answers"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_delta_that_fits_not_every_process_changes_none(runs: Runs, rank: int) -> None:
    told = runs.two[rank]["swap refusals"]
    assert [name for name, (_, untouched) in told.items() if not untouched] == []
    reasons = {name: reason for name, (reason, _) in told.items()}
    assert reasons["base"].startswith("WrongBaseError: up.weight: the base's values")
    assert reasons["delta"].startswith("ParameterMismatchError: rank 1 has another delta than rank 0")
    assert reasons["late"].startswith("WrongBaseError: up.weight: no longer has the base's values")
    assert reasons["moved"].startswith("WrongBaseError: down.weight: ")
    assert reasons["plain"].startswith("ConfigError: no parameter of the model is a DTensor")
    assert "in the delta, but the module has no such parameter" in reasons["names"]
    assert "the delta is for torch.float32" in reasons["dtype"]
    assert "up.weight: the delta is for (3, 3), but the model has (9, 6)" in reasons["shape"]
    assert "passing: in the delta, but the model's state dict does not contain it" in reasons["buffer"]


@pytest.mark.parametrize("rank", [0, 1])
def test_what_is_not_supported_is_refused_in_every_process(runs: Runs, rank: int) -> None:
    told = runs.two[rank]["refusals"]
    assert told["nan"].startswith("NonFiniteError: up.weight: ")
    assert told["nan top"].startswith("NonFiniteError: up.weight: ")
    assert told["partial"].startswith("ParameterMismatchError: up.weight: placed as (Partial(sum),)")
    assert told["export"].startswith("ConfigError: the model is sharded")
    assert told["plain"].startswith("ConfigError: no parameter of the model is a DTensor")
    assert "more: not in every process (rank" in told["more tensors"]
    assert "pipelines are not supported" in told["more tensors"]
    assert "more: (" in told["other shape"]
    assert ", but (" in told["other shape"]
    assert "up.weight: placed as (Shard(dim=0),), this process has (4, 6), not (5, 6)" in told["other part"]


def test_a_share_of_no_weight_leaves_the_base(runs: Runs) -> None:
    assert [outcome["nothing chosen"] for outcome in runs.two] == [(0, True), (0, True)]

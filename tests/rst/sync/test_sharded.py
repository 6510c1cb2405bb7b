"""A sharded model published by two processes is the chain that one process publishes, in every bit."""

from pathlib import Path

import pytest
import torch

from rst import SparseDelta
from rst.numerics.exactness import bit_equal
from rst.sync import Follower, Published, open_store, verify
from rst.sync.anchor import read_anchor
from rst.sync.chain import delta_name
from tests.rst.distributed.process_group import run
from tests.rst.distributed.sharded_models import Net
from tests.rst.sync import sharded_publishing
from tests.rst.sync.sharded_publishing import STEPS, publish

pytestmark = [
    pytest.mark.skipif(
        not hasattr(torch.cpu.Stream, "record_event"), reason="fully_shard of this torch (2.6) runs on GPUs alone"
    ),
    pytest.mark.filterwarnings("ignore:.*will be an anchor:UserWarning"),
]
CASES = [("fsdp", None), ("fsdp", torch.bfloat16), ("fsdp_columns", None), ("tensor_parallel", torch.bfloat16)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> list[list[list[Published]]]:
    return run(2, sharded_publishing.publish_sharded, folder, CASES)


@pytest.mark.parametrize("case", range(len(CASES)), ids=str)
def test_two_processes_publish_what_one_does(
    folder: Path, outcomes: list[list[list[Published]]], tmp_path: Path, case: int
) -> None:
    model = Net()
    wanted = publish(model, tmp_path, CASES[case][1])
    found = [outcome[case] for outcome in outcomes]
    assert found[0] == found[1]
    assert [step.state for step in found[0]] == [step.state for step in wanted]
    assert [step.changed for step in found[0][:STEPS]] == [step.changed for step in wanted[:STEPS]]
    for step in range(1, STEPS + 1):
        deltas = [SparseDelta.load(place / delta_name(step)) for place in (folder / str(case), tmp_path)]
        assert deltas[0] == deltas[1]
        assert 0 < deltas[0].nnz < deltas[0].base.weights
    for step in (0, 2):
        anchors = [read_anchor(open_store(place), step)[0] for place in (folder / str(case), tmp_path)]
        assert anchors[0].keys() == anchors[1].keys()
        assert all(bit_equal(anchors[0][name], anchors[1][name]) for name in anchors[0])
    assert verify(folder / str(case)).step == STEPS + 1
    served = Net().to(CASES[case][1] or torch.float32)
    assert Follower(served, folder / str(case)).update().step == STEPS + 1
    dtype = CASES[case][1] or torch.float32
    assert all(bit_equal(a, b.to(dtype)) for a, b in zip(served.parameters(), model.parameters(), strict=True))


def test_what_fails_in_one_process_fails_alike_in_all(tmp_path: Path) -> None:
    told = run(2, sharded_publishing.refusals, tmp_path)
    assert told[0] == told[1]
    assert told[0] == {
        "nan": "NonFiniteError: up.weight",
        "published": "1",
        "conflict": "ChainConflictError: None",
        "file": told[0]["file"],
    }
    assert told[0]["file"].startswith(("FileExistsError", "NotADirectoryError"))

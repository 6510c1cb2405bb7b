"""The benchmark of dense changes in miniature; it checks every round trip itself."""

import json
from pathlib import Path

import pytest

from benchmarks.dense import run

pytestmark = pytest.mark.slow


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_smallest_of_three_is_chosen_and_an_op_for_each_tensor_gains_little(tmp_path: Path) -> None:
    rows = json.loads(run(True, tmp_path).read_text())["rows"]
    assert [row["name"].split(",")[0] for row in rows] == ["float32", "float16", "bfloat16"]
    for row in rows:
        sizes = {op: row[f"rst packed {op}"] for op in ("add", "replace", "step")}
        assert row["rst packed smallest"] == min(sizes.values()) == sizes[row["the smallest is"]]
        assert 0.98 < row["an op for each tensor"] / row["rst packed smallest"] < 1.02
        assert row["rst packed smallest"] < row["XOR by byte planes, zstd -19"] or isinstance(
            row["XOR by byte planes, zstd -19"], str
        )

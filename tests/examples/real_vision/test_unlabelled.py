"""The table of the runs without labels, and a clear message where the weights are missing."""

from dataclasses import asdict
from pathlib import Path

import pytest

from examples.real_vision.network import weights_file
from examples.real_vision.unlabelled import METHODS, UnlabelledRun, write_report


def test_a_row_has_the_mean_over_seeds_of_each_domain(tmp_path: Path) -> None:
    done = {}
    for method in METHODS:
        for seed, test in enumerate((0.5, 0.6)):
            for domain in "SAC":
                run = UnlabelledRun(method, domain, seed)
                done[run.key] = {**asdict(run), "test": test, "share": 0.01}
    (table,) = write_report(done, tmp_path)
    assert "| CMKD | 1 | 55.0 ± 7.1 (2) | 55.0 ± 7.1 (2) | 55.0 ± 7.1 (2) | 55.0 |" in table.read_text().splitlines()


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="tf_efficientnet_lite0"):
        weights_file(tmp_path)

"""A run that is killed and started again ends as if it had not been stopped: same curve, same bytes."""

from functools import partial

import pytest

from tests.examples.killed_runs import assert_same_end, run_killed, without_time
from tests.examples.uda.smoke_runs import run, tiny_cell, write_data

METHODS = {
    "cmkd+fixmatch+rst": {"method": "cmkd+fixmatch+rst"},
    "partial set": {"method": "cmkd", "benchmark": "office_home_partial", "partial_set": True},
    "dropout and discriminator": {"method": "cdan"},
    "pseudo-labels": {"method": "shot+rst", "options": {"source_fraction": 0.3}},
    "memory": {"method": "cdtrans", "options": {"source_fraction": 0.3}},
    "noise": {"method": "ssrt"},
    "many steps": {"method": "cgdm"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_data(folder / "office_home_partial", "office_home_partial")
    write_data(folder / "imageclef_da", "imageclef_da")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("changes", METHODS.values(), ids=METHODS)
def test_killed_runs_end_the_same(changes, data, tmp_path):
    straight, killed = (tiny_cell(tmp_path / name, **changes) for name in ("straight", "killed"))
    root = data / straight.settings.benchmark
    run(straight, root)
    assert run_killed(partial(run, killed, root), 1, 5) == [5, 6]  # before the first checkpoint, after the second
    assert_same_end(killed, straight)


def test_loading_processes_change_nothing(data, tmp_path):
    here, ahead = (tiny_cell(tmp_path / name) for name in ("here", "ahead"))
    root = data / here.settings.benchmark
    run(here, root)
    run(ahead, root, workers=1)
    assert without_time(ahead.path) == without_time(here.path)

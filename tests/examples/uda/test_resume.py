"""A run that is killed and started again ends as if it had not been stopped: same curve, same bytes."""

import json

import pytest

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


class Killed(Exception):
    """Stands for the kill."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_data(folder / "office_home_partial", "office_home_partial")
    write_data(folder / "imageclef_da", "imageclef_da")
    return folder


def kill_at(iteration):
    def advance(done):
        if done == iteration:
            raise Killed

    return advance


def without_time(path):
    result = json.loads(path.read_text())
    del result["hours"]
    return result


@pytest.mark.parametrize("changes", METHODS.values(), ids=METHODS)
def test_killed_runs_end_the_same(changes, data, tmp_path):
    straight, killed = (tiny_cell(tmp_path / name, **changes) for name in ("straight", "killed"))
    root = data / straight.settings.benchmark
    run(straight, root)
    for iteration in (1, 5):  # before the first checkpoint, and after the second
        with pytest.raises(Killed):
            run(killed, root, advance=kill_at(iteration))
    run(killed, root)

    assert without_time(killed.path) == without_time(straight.path)
    weights = [cell.path.with_suffix(".safetensors").read_bytes() for cell in (straight, killed)]
    assert weights[0] == weights[1]
    assert not killed.checkpoint_path.exists()


def test_a_checkpoint_saves_the_work_done_before_it(data, tmp_path):
    cell = tiny_cell(tmp_path)
    with pytest.raises(Killed):
        run(cell, data / cell.settings.benchmark, advance=kill_at(5))
    seen = []
    run(cell, data / cell.settings.benchmark, advance=seen.append)
    assert seen == [5, 6]


def test_loading_processes_change_nothing(data, tmp_path):
    here, ahead = (tiny_cell(tmp_path / name) for name in ("here", "ahead"))
    root = data / here.settings.benchmark
    run(here, root)
    run(ahead, root, workers=1)
    assert without_time(ahead.path) == without_time(here.path)

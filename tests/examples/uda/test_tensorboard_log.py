"""Event files are read back: what they hold, after a kill as well, and what is said where TensorBoard is missing."""

import pytest

from examples.experiment.settings import SettingsError
from examples.uda import tensorboard_log
from examples.uda.tensorboard_log import TensorBoardLog, require_tensorboard
from tests.examples.killed_runs import Killed, kill_at
from tests.examples.uda.smoke_runs import run, tiny_cell, write_data
from tests.messages import names

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def scalars(folder):
    """All points by tag: (iteration, value)."""
    events = accumulator.EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def point(iteration, accuracy):
    return {"iteration": iteration, "accuracy": accuracy, "validators": {"im": 0.5}, "losses": {"task": 2.0}}


def test_a_killed_run_leaves_the_curve_and_nothing_twice(tmp_path):
    data = write_data(tmp_path / "data")
    cell = tiny_cell(tmp_path / "out")
    with pytest.raises(Killed):
        run(cell, data, tensorboard=True, advance=kill_at(5))
    curve = run(cell, data, tensorboard=True)["curve"]
    found = scalars(cell.path.with_suffix(".tensorboard"))
    assert found["accuracy"] == [(p["iteration"], pytest.approx(p["accuracy"])) for p in curve]
    assert found["losses/task"] == [(p["iteration"], pytest.approx(p["losses"]["task"])) for p in curve]
    assert found["validators/im"] == [(p["iteration"], pytest.approx(p["validators"]["im"])) for p in curve]


def test_a_point_that_is_computed_again_replaces_the_old_one(tmp_path):
    with TensorBoardLog(tmp_path) as log:
        log.add(point(2, 10.0))
        log.add(point(4, 20.0))
    with TensorBoardLog(tmp_path) as log:  # the run was killed before its checkpoint at 4
        log.add(point(4, 30.0))
        log.add(point(6, 40.0))
    assert scalars(tmp_path)["accuracy"] == [(2, 10.0), (4, 30.0), (6, 40.0)]


def test_nothing_is_written_unless_asked_for(tmp_path):
    cell = tiny_cell(tmp_path / "out", iterations=2)
    run(cell, write_data(tmp_path / "data"))
    assert not cell.path.with_suffix(".tensorboard").exists()


def test_a_missing_tensorboard_is_told_with_the_command(monkeypatch):
    monkeypatch.setattr(tensorboard_log, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=names("pip install tensorboard")):
        require_tensorboard()

"""Results on disk: what a cell's JSON holds, and when a cell counts as done."""

import json

import pytest
from safetensors.torch import load_file

from cmkd import VALIDATORS
from examples.experiment.cell import ChangedCellError
from examples.experiment.settings import SettingsError
from examples.uda.cells import cells, parse_tasks
from examples.uda.tables import variants
from rst import SparseDelta
from tests.examples.uda.smoke_runs import run, tiny_cell, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def test_a_trained_cell_s_result(data, tmp_path):
    cell = tiny_cell(tmp_path, method="cmkd+rst")
    run(cell, data)
    result = cell.result()
    accuracies = [point["accuracy"] for point in result["curve"]]
    assert [point["iteration"] for point in result["curve"]] == [2, 4, 6]
    assert (result["last"], result["oracle"]) == (accuracies[-1], max(accuracies))
    for name in VALIDATORS:
        chosen = max(result["curve"], key=lambda point: point["validators"][name])
        assert result["selected"][name] == {"accuracy": chosen["accuracy"], "iteration": chosen["iteration"]}
    assert set(result["curve"][0]["losses"]) == {"classification", "task", "distill", "regularization"}

    file = cell.path.with_suffix(".safetensors")
    delta = SparseDelta.load(file)
    assert (result["dsp"], result["bytes"], result["file"]) == (delta.dsp(), file.stat().st_size, file.name)
    assert 0 < delta.nnz < 0.9 * delta.base.weights
    assert all(name.startswith("head.") for name in delta.dense)


def test_the_presets_strong_resize_reaches_fixmatch(data, tmp_path):
    losses = []
    for side in (224, 256):
        changes = {"method": "cmkd+fixmatch", "fixmatch_threshold": 0.0, "preset_changes": {"strong_resize": side}}
        result = run(tiny_cell(tmp_path / str(side), **changes), data)
        losses.append(result["curve"][0]["losses"]["fixmatch_student"])
    assert losses[0] != losses[1]


def test_a_linear_probe_stores_its_head_alone(data, tmp_path):
    cell = tiny_cell(tmp_path, method="linear_probe")
    run(cell, data)
    head = load_file(cell.path.with_suffix(".safetensors"))
    assert {name.partition(".")[0] for name in head} == {"batch_norm", "layer_norm", "linear"}
    assert cell.result()["dsp"] == 4 * 16 + 16 * 12  # two norms' weights and biases, and the linear layer


def test_zero_shot_stores_nothing_and_is_run_once(data, tmp_path):
    cell = tiny_cell(tmp_path, method="clip")
    run(cell, data)
    result = cell.result()
    assert (result["dsp"], result["bytes"], result["file"]) == (0, 0, None)
    variant = next(variant for variant in variants("table1") if variant.name == "RN50")
    planned = cells(variant, tmp_path, seeds=3)
    assert sum(cell.row == "CLIP" for cell in planned) == 12
    assert sum(cell.row == "CMKD" for cell in planned) == 36
    assert len({cell.path for cell in planned}) == len(planned)


def test_a_result_of_other_settings_is_refused(data, tmp_path):
    run(tiny_cell(tmp_path), data)
    changed = tiny_cell(tmp_path, lambda1=0.5)
    with pytest.raises(ChangedCellError, match=r"lambda1: 0\.25 -> 0\.5") as caught:
        changed.result()
    assert str(changed.path) in str(caught.value)


def test_a_cell_without_a_file_is_not_done(tmp_path):
    assert tiny_cell(tmp_path).result() is None


def test_tasks_by_name():
    variant = variants("table1")[0]
    assert parse_tasks(["Ar-Cl", "Re-Pr"], variant) == [("Ar", "Cl"), ("Re", "Pr")]
    with pytest.raises(SettingsError, match="'Ar-Xx'.*Ar-Cl"):
        parse_tasks(["Ar-Xx"], variant)


def test_results_are_json_that_says_how_they_came_about(data, tmp_path):
    cell = tiny_cell(tmp_path)
    run(cell, data)
    stored = json.loads(cell.path.read_text())
    assert stored["settings"] == cell.settings.to_dict()
    assert stored["fingerprint"] == cell.settings.fingerprint()
    assert stored["versions"]["torch"]
    assert stored["hours"] > 0

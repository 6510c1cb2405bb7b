"""Results on disk: what a cell's JSON holds, and when a cell counts as done."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from cmkd import VALIDATORS, Student
from examples.experiment.cell import ChangedCellError
from examples.experiment.settings import SettingsError
from examples.uda.backbones import Backbone, load_backbone
from examples.uda.benchmarks import get_benchmark
from examples.uda.cells import cells, parse_tasks
from examples.uda.domains import TaskData
from examples.uda.methods import build_objective
from examples.uda.running import build_student, build_teacher
from examples.uda.tables import variants
from examples.uda.tiny_backbones import load_tiny_backbone
from examples.uda.training import build_optimizer
from rst import SparseDelta
from tests.examples.uda.smoke_runs import TINY, run, tiny_cell, write_data
from tests.messages import names


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
    with pytest.raises(ChangedCellError, match=names("lambda1", 0.25, 0.5)) as caught:
        changed.result()
    assert str(changed.path) in str(caught.value)


def test_a_cell_without_a_file_is_not_done(tmp_path):
    assert tiny_cell(tmp_path).result() is None


def test_tasks_by_name():
    variant = variants("table1")[0]
    assert parse_tasks(["Ar-Cl", "Re-Pr"], variant) == [("Ar", "Cl"), ("Re", "Pr")]
    with pytest.raises(SettingsError, match=names("'Ar-Xx'", "Ar-Cl")):
        parse_tasks(["Ar-Xx"], variant)


def test_results_are_json_that_says_how_they_came_about(data, tmp_path):
    cell = tiny_cell(tmp_path)
    run(cell, data)
    stored = json.loads(cell.path.read_text())
    assert stored["settings"] == cell.settings.to_dict()
    assert stored["fingerprint"] == cell.settings.fingerprint()
    assert stored["versions"]["torch"]
    assert stored["hours"] > 0


def test_a_partial_sets_baseline_has_half_the_weight():
    settings = replace(TINY, method="baseline")
    whole, half = (
        build_objective(replace(settings, partial_set=partial), None, feature_dim=4, classes=3)
        for partial in (False, True)
    )
    assert (whole.weight, half.weight) == (1.0, 0.5)


def test_the_presets_refresh_interval_reaches_the_partial_set():
    settings = replace(TINY, partial_set=True, preset_changes={"partial_refresh_every": 7})
    objective = build_objective(settings, nn.Identity(), feature_dim=4, classes=3)
    assert [t for t in range(20) if objective.refresh_due(t, iterations_per_epoch=5, max_iterations=20)] == [0, 7, 14]


@pytest.mark.parametrize("frozen", [True, False])
def test_batchnorm_is_frozen_or_free(frozen):
    encoder = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12))
    backbone = Backbone(encoder, 12, (0.5,) * 3, (0.5,) * 3, 2)
    settings = replace(TINY, frozen_batchnorm=frozen, preset="paper")
    student = build_student(backbone, settings, 3, trains_encoder=True).train()
    student(torch.randn(6, 3, 2, 2))
    assert bool((encoder[1].running_mean == 0).all()) == frozen
    assert encoder[1].weight.requires_grad != frozen


def test_adamw_where_a_method_needs_it():
    settings = replace(TINY, optimizer="adamw", weight_decay=0.05)
    student = Student(nn.Linear(3, 2), nn.Linear(2, 2))
    optimizer = build_optimizer(student, nn.Linear(1, 1), settings)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05] * 3


def test_co_tunings_factor_calibrates_the_classifier_of_the_prototypes(data):
    settings = replace(TINY, weights="imagenet1k", teacher="prototypes", backbone="RN50", preset="official")
    seen = []
    for changes in ({}, {"prototype_logit_factor": 3.0}):
        torch.manual_seed(0)
        changed = replace(settings, preset_changes=changes)
        backbone = load_tiny_backbone(changed, get_benchmark(TINY.benchmark).class_names(), data)
        preset = changed.resolved_preset()
        task = get_benchmark(TINY.benchmark).tasks[0]
        accelerator = Accelerator()
        task_data = TaskData(get_benchmark(TINY.benchmark), data, task, backbone, accelerator, preset=preset)
        backbone.encoder.eval()
        seen.append(build_teacher(backbone, task_data, workers=0).prototypes)
    assert not torch.equal(*seen)


@pytest.mark.parametrize(("preset", "mean"), [("paper", (0.485, 0.456, 0.406)), ("corrected", (0.5, 0.5, 0.5))])
def test_imagenet_weights_are_normalised_as_appendix_e_says_or_as_they_were_trained(preset, mean, monkeypatch):
    model = timm.create_model("test_vit", num_classes=5)
    model.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "input_size": (3, 160, 160)}
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: model)
    settings = replace(TINY, weights="imagenet21k", preset=preset)
    assert load_backbone(settings, ["a"], Path()).mean == mean

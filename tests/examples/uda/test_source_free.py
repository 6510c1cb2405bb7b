"""The source-free task: batches without a source, methods that need none, and the real SVHN classifier."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from cmkd import SourceFreeCMKD
from examples.experiment.settings import SettingsError
from examples.uda.backbones import load_backbone
from examples.uda.benchmarks import DatasetError, get_benchmark
from examples.uda.cells import Cell
from examples.uda.fake_domains import FakeDomains
from examples.uda.methods import build_objective
from examples.uda.running import run_cell
from examples.uda.svhn_cnn import WEIGHTS, load_svhn
from examples.uda.tables import variants
from tests.conftest import SHARED_DATA

(VARIANT,) = variants("digits-source-free")
BENCHMARK = get_benchmark("digits_source_free")


@pytest.fixture
def root(tmp_path):
    FakeDomains(images_per_class=4).write("digits_source_free", tmp_path, domains="SU")
    return tmp_path


@pytest.mark.parametrize("row", ["SHOT", "CMKD+RST", "Source model"])
def test_a_row_runs_without_source_images(root, row):
    settings = replace(VARIANT.rows[row], iterations=4, ramp_iterations=4, batch_size=8, evaluate_every=2)
    BENCHMARK.check(root, domains="SU", counts=False)
    cell = Cell("test", "svhn_cnn", row, settings, ("S", "U"), 42, root / "out")
    result = run_cell(cell, root)
    assert result["status"] == "finished"
    assert result["dsp"] > 0 or row == "Source model"


def test_the_teacher_is_the_head_as_it_was(root):
    settings = VARIANT.rows["CMKD"]
    backbone = load_backbone(settings, BENCHMARK.class_names(), root)
    features = torch.randn(3, 256)
    assert torch.equal(backbone.teacher(features), backbone.head(features))
    assert not any(weight.requires_grad for weight in backbone.teacher.parameters())
    assert all(weight.requires_grad for weight in backbone.head.parameters())
    objective = build_objective(settings, backbone.teacher, feature_dim=256, classes=10)
    assert isinstance(objective, SourceFreeCMKD)


def test_methods_that_need_a_source_are_refused():
    for changes in ({"method": "cmkd"}, {"method": "shot", "options": {}}, {"method": "baseline"}):
        settings = replace(VARIANT.rows["CMKD"], **changes)
        with pytest.raises(SettingsError, match=f"no source images.*{settings.method}"):
            build_objective(settings, nn.Identity(), feature_dim=4, classes=10)


def test_there_are_no_svhn_images(root):
    with pytest.raises(ValueError, match="SVHN"):
        BENCHMARK.dataset(root, "S", "train", role="source")
    (root / WEIGHTS).unlink()
    with pytest.raises(DatasetError, match="svhn.safetensors is missing"):
        BENCHMARK.check(root, domains="S", counts=False)
    with pytest.raises(FileNotFoundError, match="ccexam"):
        load_svhn(root)


def test_a_file_of_other_tensors_is_named(root):
    weights = load_file(root / WEIGHTS)
    weights["features.9.weight"] = weights.pop("features.1.3.weight")
    save_file(weights, root / WEIGHTS)
    with pytest.raises(RuntimeError, match=r"features\.1\.3\.weight.*features\.9\.weight"):
        load_svhn(root)


def test_the_real_network_reads_digits_before_any_adaptation(tmp_path):
    if not (SHARED_DATA / WEIGHTS).is_file():
        pytest.skip(f"no SVHN classifier at {SHARED_DATA}")
    cell = Cell("test", "svhn_cnn", "Source model", VARIANT.rows["Source model"], ("S", "U"), 42, tmp_path)
    assert run_cell(cell, SHARED_DATA)["last"] == pytest.approx(72.9, abs=1.0)

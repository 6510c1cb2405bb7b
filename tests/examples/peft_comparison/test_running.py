"""A run from end to end on fake images: its JSON file, RST against full fine-tuning, and divergence."""

import pytest
from safetensors.torch import load_file

from examples.peft_comparison.tuning import SparseResidual
from examples.uda.fake_domains import FakeDomains
from examples.uda.running import build_student
from rst import SparseDelta
from tests.examples.peft_comparison.tiny_plan import PLAN, TASK, runner, tuning_of


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    FakeDomains(images_per_class=3).write(PLAN.settings.benchmark, folder, domains=["C", "I"])
    return folder


def test_sparse_at_zero_is_full_fine_tuning(data, tmp_path):
    full, sparse = tuning_of("Full fine-tuning"), SparseResidual("RST tau=0", threshold=0.0)
    run = runner(data)
    results, files = [], []
    for tuning in (full, sparse):
        cell = PLAN.cell(tuning, 0.05, TASK, 0, tmp_path)
        results.append(run.run(cell, tuning))
        files.append(cell.path.with_suffix(""))
    assert results[0]["curve"] == results[1]["curve"]
    tuned = load_file(files[0] / "student.safetensors")
    delta = SparseDelta.load(files[1] / "delta.safetensors")
    backbone = run.pretrained(TASK)[0]
    student = build_student(backbone, PLAN.settings, len(run.benchmark.classes), trains_encoder=True)
    delta.apply(student)
    for name, weight in student.state_dict().items():
        assert weight.equal(tuned[name]), name


def test_a_stored_run(data, tmp_path):
    tuning = tuning_of("AdaLoRA r=2 to 1")
    cell = PLAN.cell(tuning, 0.1, TASK, 2, tmp_path)
    assert cell.result() is None
    result = runner(data).run(cell, tuning)
    assert cell.result()["last"] == result["last"]
    assert (result["status"], result["rate"], result["seed"]) == ("finished", 0.1, 44)
    assert result["bytes"] == sum(path.stat().st_size for path in cell.path.with_suffix("").iterdir())
    assert "orthogonality" in result["curve"][-1]["losses"]


def test_a_run_that_diverges_is_done(data, tmp_path):
    tuning = tuning_of("Full fine-tuning")
    cell = PLAN.cell(tuning, 1e30, TASK, 0, tmp_path)
    runner(data).run(cell, tuning)
    assert cell.result()["status"] == "diverged"
    assert "last" not in cell.result()


def test_the_probe_tunes_the_rate_of_the_head(tmp_path):
    probe, full = (
        PLAN.cell(tuning_of(label), 0.1, TASK, 0, tmp_path) for label in ("Linear probe", "Full fine-tuning")
    )
    assert (probe.settings.encoder_lr, probe.settings.head_lr) == (PLAN.settings.encoder_lr, 0.1)
    assert (full.settings.encoder_lr, full.settings.head_lr) == (0.1, PLAN.settings.head_lr)

"""A run whose numbers overflow is stopped, stored as diverged with the iteration, and counts as done."""

import math

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from cmkd import Student
from examples.uda.divergence import DivergedError, check_loss, check_weights
from tests.examples.uda.smoke_runs import run, tiny_cell, write_data
from tests.messages import names


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def test_a_diverged_cell_is_stored_without_scores(data, tmp_path):
    cell = tiny_cell(tmp_path, method="baseline", encoder_lr=1e30, evaluate_every=6)
    stored = run(cell, data)
    assert cell.result() == stored
    assert (stored["status"], stored["seed"]) == ("diverged", 42)
    assert 1 <= stored["iteration"] <= 3  # not only at the evaluation
    assert "is not finite after" in stored["error"]
    assert not {"last", "oracle", "curve"} & stored.keys()
    assert not list(cell.path.parent.glob("*.checkpoint"))


def test_a_finished_cell_says_so(data, tmp_path):
    assert run(tiny_cell(tmp_path, method="baseline"), data)["status"] == "finished"


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_loss_and_weights_are_looked_at(value):
    student = Student(nn.Linear(2, 2), nn.BatchNorm1d(2))
    accelerator = Accelerator(cpu=True)
    check_loss(torch.tensor(1.0), 3, accelerator)
    check_weights(student, 3)
    with pytest.raises(DivergedError, match=names("loss", 3)) as caught:
        check_loss(torch.tensor(value), 3, accelerator)
    assert caught.value.iteration == 3
    student.head.running_var[1] = value
    with pytest.raises(DivergedError, match=names("head.running_var", 4)):
        check_weights(student, 4)

"""The loop: learning rates, scores, sparsity, and runs that are killed and end as if they had not been."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from examples.experiment.cell import ChangedCellError
from examples.segmentation.building import build_student
from examples.segmentation.cells import cells
from examples.segmentation.classes import CLASSES, IGNORED
from examples.segmentation.domains import CITYSCAPES
from examples.segmentation.evaluation import score
from examples.segmentation.running import run_cell
from examples.segmentation.smoke import shrink
from examples.segmentation.tables import load_table
from examples.segmentation.training import build_optimizer, set_learning_rates, sparse_config
from tests.examples.killed_runs import assert_same_end, run_killed

TABLE = load_table("gta_cityscapes")


def cell_of(row, output, **changes):
    settings = replace(shrink(TABLE.rows[row], 4, output), **changes)
    (cell,) = cells(replace(TABLE, rows={row: settings}), output)
    return cell


@pytest.mark.parametrize("row", ["RST-config1", "LoRA"])
def test_killed_runs_end_the_same(row, scenes, tmp_path):
    straight, killed = (cell_of(row, tmp_path / name, evaluate_every=2) for name in ("straight", "killed"))
    run_cell(straight, scenes)
    assert run_killed(partial(run_cell, killed, scenes), 1, 3) == [3, 4]  # before the first checkpoint, and after it
    assert_same_end(killed, straight)
    assert straight.path.with_suffix(".png").stat().st_size > 1000
    with pytest.raises(ChangedCellError, match="head_lr"):
        replace(straight, settings=replace(straight.settings, head_lr=0.5)).result()


def test_learning_rates_warm_up_and_fade():
    settings = replace(TABLE.rows["Fine-Tuning"], iterations=1000, warm_up=100, power=0.9)
    parts = torch.nn.ModuleDict({"encoder": torch.nn.Linear(1, 1), "head": torch.nn.Linear(1, 1)})
    optimizer = build_optimizer(parts, settings)  # type: ignore[arg-type]
    for iteration, factor in ((0, 0.01), (49, 0.5 * 0.951**0.9), (99, 0.901**0.9), (900, 0.1**0.9)):
        set_learning_rates(optimizer, settings, iteration)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([6e-5 * factor, 6e-4 * factor])


def test_tau_grows_on_a_straight_line_and_the_head_is_saved_whole():
    config = sparse_config(TABLE.rows["RST-config1"])
    assert [config.threshold_at(p) for p in (0, 0.5, 1)] == pytest.approx([5e-4, 1.775e-2, 3.5e-2])
    assert config.total_steps == 40_000
    assert config.modules_to_save == ["head"]
    assert sparse_config(load_table("cityscapes_acdc").rows["CMKD+RST"]).modules_to_save is None


class Painter(torch.nn.Module):
    """Predicts the labels, but calls the upper half of the road sidewalk."""

    def __init__(self, labels):
        super().__init__()
        self.labels = labels
        self.encoder = torch.nn.Identity()
        self.head = torch.nn.Identity()
        self.calls = 0

    def log_view(self, output, size):
        painted = self.labels[self.calls].copy()
        self.calls += 1
        painted[:48][painted[:48] == 0] = 1
        painted[painted == IGNORED] = 0
        assert painted.shape == size
        return torch.nn.functional.one_hot(torch.from_numpy(painted.astype(np.int64)), 19).permute(2, 0, 1)[None]


def test_iou_by_counting(scenes):
    found = CITYSCAPES.scenes(scenes, "val")
    labels = [CITYSCAPES.read_labels(scene) for scene in found]
    miou, per_class = score(Painter(labels), CITYSCAPES, found, (128, 64), torch.device("cpu"))  # type: ignore[arg-type]
    truth = np.stack(labels)
    wrong = (truth[:, :48] == 0).sum()
    assert per_class["road"] == pytest.approx(100 * (1 - wrong / (truth == 0).sum()), rel=1e-5)
    sidewalk = (truth == 1).sum()
    assert per_class["sidewalk"] == pytest.approx(100 * sidewalk / (sidewalk + wrong), rel=1e-5)
    assert per_class["sky"] == pytest.approx(100)
    assert set(per_class) == {CLASSES[i] for i in np.unique(truth)}
    assert miou == pytest.approx(np.mean(list(per_class.values())))


def test_a_cell_starts_from_the_same_network(tmp_path):
    settings = cell_of("RST-config1", tmp_path).settings
    digests = []
    for _ in range(2):
        torch.manual_seed(3)
        digests.append([weight.sum().item() for weight in build_student(settings).parameters()])
    assert digests[0] == digests[1]

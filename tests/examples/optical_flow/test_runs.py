"""Runs on generated scenes: RST learns and merges bit for bit, a killed run ends the same, every row runs."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.transforms.v2.functional import pil_to_tensor
from torchvision.utils import flow_to_image

from examples.experiment.cell import ChangedCellError
from examples.optical_flow.evaluation import digest, predict
from examples.optical_flow.kitti import FlowPair
from examples.optical_flow.moving_scenes import MovingScenes
from examples.optical_flow.networks import load_network
from examples.optical_flow.pictures import draw_prediction
from examples.optical_flow.running import run_cell, start_path
from examples.optical_flow.smoke import LEARNER, check_learnt, check_merge, shorten
from examples.optical_flow.tables import cells, load_variant
from tests.examples.killed_runs import assert_same_end, run_killed
from tests.messages import names

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    MovingScenes().write(folder, pairs=10)
    return folder


def cell_of(label, output, **changes):
    """A cell of a row on the tiny network, two steps unless said otherwise."""
    variant = load_variant("generated")
    row = replace(
        shorten(variant.rows[label], steps=2), **{"updates": 2, "test_updates": 2, "batch_size": 1, **changes}
    )
    (cell,) = cells(replace(variant, rows={label: row}), output)
    return cell


def test_rst_learns_and_its_delta_is_the_network(data, tmp_path):
    cell = cell_of(LEARNER, tmp_path, steps=32, evaluate_every=16, updates=4, test_updates=6, batch_size=3)
    result = run_cell(cell, data)
    check_learnt(result)
    kept = [point["kept"] for point in result["curve"]]
    weights = sum(weight.numel() for weight in load_network("raft_tiny", None).parameters())
    assert kept[0] == 0
    assert kept[1] == pytest.approx(0.05**0.5, abs=1e-4)
    assert result["dsp"] == round(0.05 * weights) == round(kept[2] * weights)
    check_merge(cell, data)

    start = load_file(start_path(cell))
    other = {**start, "update_block.flow_head.conv2.weight": start["update_block.flow_head.conv2.weight"] + 1.0}
    save_file(other, start_path(cell))
    with pytest.raises(AssertionError, match=names("rst merge")):
        check_merge(cell, data)
    stuck = {**result, "last": result["start"]}
    with pytest.raises(AssertionError, match=names("EPE")):
        check_learnt(stuck)


@pytest.mark.slow
@pytest.mark.parametrize("label", ["RST", "LoRA"])
def test_killed_runs_end_the_same(label, data, tmp_path):
    straight, killed = (cell_of(label, tmp_path / name, steps=3, evaluate_every=1) for name in ("straight", "killed"))
    run_cell(straight, data)
    assert run_killed(partial(run_cell, killed, data), 1, 2) == [3]
    assert_same_end(killed, straight)


@pytest.mark.slow
@pytest.mark.parametrize("label", ["Fine-Tuning", "Linear-Probe", "BitFit", "RST-bias"])
def test_other_rows_run(label, data, tmp_path):
    cell = cell_of(label, tmp_path)
    result = run_cell(cell, data)
    saved = cell.path.with_suffix(".safetensors")
    assert result["bytes"] == saved.stat().st_size
    assert result["last"]["epe"] != result["start"]["epe"]
    assert len(list(cell.path.parent.glob("*.pair*.png"))) == 2
    if label == "RST-bias":
        check_merge(cell, data)
    else:
        assert sum(tensor.numel() for tensor in load_file(saved).values()) == result["dsp"]
    with pytest.raises(ChangedCellError, match=names("gamma", 0.85, 0.8)):
        cell_of(label, tmp_path, gamma=0.8).result()


def test_rst_bias_is_bitfit_but_for_the_norm_that_is_clipped(data, tmp_path):
    errors = {}
    for clip in (1e9, 1e-6):  # Adam hides a clip to anything far above its epsilon
        for label in ("BitFit", "RST-bias"):
            result = run_cell(cell_of(label, tmp_path / str(clip), clip_norm=clip, steps=3), data)
            errors[label, clip] = result["last"]["epe"]
    assert errors["BitFit", 1e9] == pytest.approx(errors["RST-bias", 1e9], rel=1e-5)
    assert errors["BitFit", 1e-6] != pytest.approx(errors["RST-bias", 1e-6], rel=3e-4)


def test_the_digest_tells_one_bit():
    flow = torch.zeros(2, 3, 4)
    other = flow.clone()
    other[1, 2, 3] = -0.0
    assert digest([flow]) == digest([flow.clone()]) != digest([other])


def test_odd_sizes_are_padded_below_and_beside():
    network = load_network("raft_tiny", None).eval()
    first, second, flow, valid = MovingScenes(height=43, width=61).scene(0)
    found = predict(network, FlowPair(first, second, flow, valid), updates=2)
    assert found.shape == (2, 43, 61)
    rows, columns = torch.arange(48).clamp(max=42), (torch.arange(64) - 1).clamp(0, 60)
    padded = FlowPair(first[:, rows][..., columns], second[:, rows][..., columns], flow, valid)
    assert torch.equal(predict(network, padded, updates=2)[:, :43, 1:62], found)


def test_pictures_show_flow_by_the_colour_wheel_and_black_where_unknown(tmp_path):
    first, second, flow, valid = MovingScenes(height=16, width=24).scene(0)
    valid |= flow.norm(dim=0) == flow.norm(dim=0).max()  # so that this one sets the scale
    wheel = flow_to_image(flow).int()
    draw_prediction(FlowPair(first, second, flow, valid), torch.full_like(flow, 1e4), flow, tmp_path / "picture.png")
    image = Image.open(tmp_path / "picture.png")
    assert image.size == (24, 64)
    truth, after = image.crop((0, 16, 24, 32)), image.crop((0, 48, 24, 64))
    for place in range(16 * 24):
        spot = place % 24, place // 24
        assert truth.getpixel(spot) == (after.getpixel(spot) if valid[spot[1], spot[0]] else (0, 0, 0))
    assert (pil_to_tensor(after).int() - wheel).abs().max() <= 2

"""Following the flow from the first frame leads to the same colour in the second: generated, and after resizing."""

import pytest
import torch
import torch.nn.functional as F

from examples.optical_flow.augmentation import SparseFlowAugmentation, resize
from examples.optical_flow.batches import FlowBatches
from examples.optical_flow.kitti import FlowPair, KittiPairs
from examples.optical_flow.moving_scenes import MovingScenes
from tests.messages import names

SCENES = MovingScenes(valid_share=1.0)


def colour_errors(pair, flow):
    """Median change of colour along a flow, over the known pixels that stay in the frame."""
    height, width = pair.valid.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    to_x, to_y = x + flow[0], y + flow[1]
    inside = pair.valid & (to_x >= 0) & (to_x <= width - 1) & (to_y >= 0) & (to_y <= height - 1)
    grid = torch.stack([2 * to_x / (width - 1) - 1, 2 * to_y / (height - 1) - 1], dim=-1)[None]
    found = F.grid_sample(pair.second[None].float(), grid, align_corners=True)[0]
    return (found - pair.first.float()).abs().mean(dim=0)[inside].median().item()


@pytest.mark.parametrize("number", range(3))
def test_the_flow_of_a_scene_is_exact(number):
    pair = FlowPair(*SCENES.scene(number))
    exact = colour_errors(pair, pair.flow)
    for quarter in ((0.25, 0.0), (-0.25, 0.0), (0.0, 0.25), (0.0, -0.25)):
        assert colour_errors(pair, pair.flow + torch.tensor(quarter)[:, None, None]) > 1.15 * exact
    assert colour_errors(pair, torch.zeros_like(pair.flow)) > 8 * exact
    assert pair.flow.flatten(1).std(dim=1).min() > 0.05  # no mere shift


def test_files_hold_the_scene_and_follow_from_the_seed(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        MovingScenes(height=16, width=24, seed=seed).write(tmp_path / name, pairs=2)
    same, again, other = (KittiPairs(tmp_path / name)[1] for name in "abc")
    first, second, flow, valid = MovingScenes(height=16, width=24, seed=1).scene(1)
    assert torch.equal(same.first, first)
    assert torch.equal(same.second, second)
    assert torch.equal(same.valid, valid)
    assert (same.flow - flow)[:, valid].abs().max() <= 0.5 / 64
    assert all(torch.equal(a, b) for a, b in zip(same, again, strict=True))
    assert not torch.equal(same.first, other.first)


def test_resizing_keeps_the_flow_right():
    pair = FlowPair(*SCENES.scene(0))
    large = resize(pair, 60, 96)  # by 1.25 and 1.5
    assert large.first.shape == (3, 60, 96)
    assert large.valid.sum() == pair.valid.sum()
    assert colour_errors(large, large.flow) < 5
    assert colour_errors(large, large.flow / 1.25) > 15
    small = resize(pair, 36, 48)
    assert colour_errors(small, small.flow) < 8


def test_one_known_pixel_moves_to_its_new_place():
    flow, valid = torch.zeros(2, 10, 10), torch.zeros(10, 10, dtype=torch.bool)
    flow[:, 4, 7], valid[4, 7] = torch.tensor([3.0, -1.0]), True
    image = torch.zeros(3, 10, 10, dtype=torch.uint8)
    found = resize(FlowPair(image, image, flow, valid), 20, 15)
    assert found.valid.nonzero().tolist() == [[9, 11]]
    assert found.flow[:, 9, 11].tolist() == [4.5, -2.0]


def test_crops_change_both_frames_alike(monkeypatch):
    monkeypatch.setattr("examples.optical_flow.augmentation.ERASE_PROBABILITY", 0.0)
    image, flow, valid = SCENES.scene(0)[0], torch.zeros(2, 48, 64), torch.ones(48, 64, dtype=torch.bool)
    augment = SparseFlowAugmentation(40, 56)
    crops = []
    for seed in range(8):
        torch.manual_seed(seed)
        crops.append(augment(FlowPair(image, image, flow, valid)))
    assert all(torch.equal(crop.first, crop.second) for crop in crops)
    assert {crop.first.shape for crop in crops} == {(3, 40, 56)}
    assert len({int(crop.first.sum()) for crop in crops}) == 8
    with pytest.raises(ValueError, match=names("48x64", "56x56")):
        SparseFlowAugmentation(56, 56)(FlowPair(image, image, flow, valid))


def test_holes_are_in_the_second_frame_only(monkeypatch):
    for name, value in (("ERASE_PROBABILITY", 1.0), ("SCALE_PROBABILITY", 0.0)):
        monkeypatch.setattr(f"examples.optical_flow.augmentation.{name}", value)
    image, flow, valid = SCENES.scene(0)[0], torch.zeros(2, 48, 64), torch.ones(48, 64, dtype=torch.bool)
    torch.manual_seed(0)
    crop = SparseFlowAugmentation(40, 56)(FlowPair(image, image, flow, valid))
    changed = (crop.first != crop.second).any(dim=0)
    assert 0 < changed.float().mean() < 0.8
    assert crop.second[:, changed].unique(dim=1).shape[1] == 1


def test_holes_are_scaled_with_the_image(monkeypatch):
    """Their sides are drawn before the scaling: at four times the size, a hole is four times as wide."""
    largest = []
    for exponent in (0.0, 2.0):
        for name, value in {
            "ERASE_PROBABILITY": 1.0,
            "SCALE_PROBABILITY": 1.0,
            "STRETCH_PROBABILITY": 0.0,
            "SCALE": (exponent, exponent),
            "MOST_HOLES": 1,
            "HOLE": (0.2, 0.2),
        }.items():
            monkeypatch.setattr(f"examples.optical_flow.augmentation.{name}", value)
        image, flow, valid = SCENES.scene(0)[0], torch.zeros(2, 48, 64), torch.ones(48, 64, dtype=torch.bool)
        widths = []
        for seed in range(12):
            torch.manual_seed(seed)
            crop = SparseFlowAugmentation(40, 56)(FlowPair(image, image, flow, valid))
            widths.append(int((crop.first != crop.second).any(dim=0).any(dim=0).sum()))
        largest.append(max(widths))
    assert largest[0] <= 8
    assert largest[1] >= 3 * largest[0]


def test_a_batch_follows_from_its_number(tmp_path):
    SCENES.write(tmp_path, pairs=4)
    pairs = KittiPairs(tmp_path)

    def batches(seed):
        return FlowBatches(pairs, [0, 2, 3], SparseFlowAugmentation(40, 56), batch_size=2, seed=seed)

    straight = list(batches(1).iterate(0, 3, workers=0))
    torch.rand(5)  # other random numbers drawn in between
    resumed = next(batches(1).iterate(2, 3, workers=0))
    assert all(torch.equal(a, b) for a, b in zip(straight[2], resumed, strict=True))
    assert not torch.equal(straight[2].first, batches(2)[2].first)
    assert straight[0].flow.shape == (2, 2, 40, 56)

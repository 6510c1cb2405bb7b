"""Batches: a function of seed and number, pictures and labels together, rare classes more often."""

import math
import random

import numpy as np
import pytest
import torch

from examples.segmentation.classes import CLASSES
from examples.segmentation.domains import CITYSCAPES, GTA5
from examples.segmentation.rare_classes import RareClassSampler, class_chances, count_pixels
from examples.segmentation.scene_batches import MEAN, STD, SceneBatches

SIGN = CLASSES.index("traffic_sign")


def batches(scenes, **changes):
    arguments = {
        "source_size": (128, 64),
        "target_size": (128, 64),
        "crop": 48,
        "batch_size": 2,
        "seed": 1,
        "sampler": None,
        "min_pixels": 10,
    }
    return SceneBatches(GTA5, CITYSCAPES, scenes, **{**arguments, **changes})


def test_a_batch_follows_from_seed_and_number(scenes):
    first, again, other_seed = batches(scenes)[3], batches(scenes)[3], batches(scenes, seed=2)[3]
    assert torch.equal(first.source_images, again.source_images)
    assert torch.equal(first.target_images, again.target_images)
    assert first.seed == again.seed
    assert not torch.equal(first.target_images, other_seed.target_images)
    assert not torch.equal(first.source_images, batches(scenes)[4].source_images)
    assert not torch.equal(first.source_images[0], first.source_images[1])


def test_labels_stay_with_their_pixels(scenes):
    """Cars are the reddest class of the rendered style, wherever the crop is and whichever way it is flipped."""
    car = CLASSES.index("car")
    seen = 0
    for number in range(8):
        batch = batches(scenes)[number]
        pixels = batch.source_images * STD + MEAN
        redness = pixels[:, 0] - pixels[:, 1:].mean(dim=1)
        inside = batch.source_labels == car
        if inside.any():
            seen += 1
            assert redness[inside].mean() > redness[~inside].mean() + 0.3
    assert seen > 3
    assert batch.source_images.shape == (2, 3, 48, 48)
    assert batch.source_labels.shape == (2, 48, 48)
    assert batch.source_labels.dtype == torch.int64


def test_workers_change_nothing(scenes):
    here = list(batches(scenes).iterate(2, 4))
    ahead = list(batches(scenes).iterate(2, 4, workers=1))
    assert len(here) == len(ahead) == 2
    assert all(torch.equal(a.source_images, b.source_images) for a, b in zip(here, ahead, strict=True))
    assert torch.equal(here[0].target_images, batches(scenes)[2].target_images)


def test_class_chances_written_out():
    pixels = np.zeros((2, len(CLASSES)), dtype=np.int64)
    pixels[0, 0], pixels[1, 0], pixels[1, 3] = 600, 300, 100
    weights = {0: math.exp((1 - 0.9) / 0.5), 3: math.exp((1 - 0.1) / 0.5)}
    got = class_chances(pixels, 0.5)
    assert got[0] == pytest.approx(weights[0] / sum(weights.values()))
    assert got[3] == pytest.approx(weights[3] / sum(weights.values()))
    assert got[[1, 2, 4]].tolist() == [0, 0, 0]


def test_rare_classes_are_drawn_more_often_and_crops_show_them(scenes, tmp_path):
    train = GTA5.scenes(scenes, "train")
    pixels = count_pixels(GTA5, train, tmp_path / "pixels.json")
    expected = [(GTA5.read_labels(train[4]) == label).sum() for label in range(len(CLASSES))]
    assert pixels[4].tolist() == expected
    sampler = RareClassSampler(pixels, 0.01, 20)
    draws = [sampler.draw(random.Random(number)) for number in range(200)]
    assert all(pixels[scene, label] >= 20 for scene, label in draws)
    rarest = int(np.where(pixels.sum(axis=0) > 0, pixels.sum(axis=0), 10**9).argmin())
    assert sum(label == rarest for _, label in draws) > 200 / 9 * 1.2

    def with_sign(**options):
        found = [(batches(scenes, **options)[n].source_labels == SIGN).sum(dim=(1, 2)) for n in range(12)]
        return int((torch.cat(found) >= 10).sum())

    only_signs = np.zeros_like(pixels)
    only_signs[:, SIGN] = pixels[:, SIGN]
    sign_sampler = RareClassSampler(only_signs, 0.01, 20)
    assert with_sign(sampler=sign_sampler) > 1.5 * with_sign()


def test_pixels_are_counted_once(scenes, tmp_path):
    train = GTA5.scenes(scenes, "train")
    cache = tmp_path / "pixels.json"
    first = count_pixels(GTA5, train, cache)
    cache.write_text(cache.read_text().replace("[[", "[[7, ", 1).replace(", 0]", "]", 1))  # a trace in the first row
    assert count_pixels(GTA5, train, cache)[0, 0] == 7
    assert (count_pixels(GTA5, train[:5], cache) == first[:5]).all()  # other scenes: counted anew


@pytest.mark.parametrize("rare_classes", [False, True])
def test_crops_that_one_class_fills_are_drawn_again(scenes, monkeypatch, rare_classes):
    """Generated scenes have no class on three quarters of a crop: a stricter limit shows whether there is one."""
    everything = np.ones((len(GTA5.scenes(scenes, "train")), len(CLASSES)), dtype=np.int64)
    sampler = RareClassSampler(everything, 1.0, 1) if rare_classes else None

    def filled(limit: float) -> int:
        monkeypatch.setattr("examples.segmentation.scene_batches.LARGEST_SHARE", limit)
        crops = [batches(scenes, sampler=sampler, min_pixels=0)[number].source_labels for number in range(10)]
        counts = [torch.bincount(labels[labels != 255]) for labels in torch.cat(crops)]
        return sum(bool(count.max() >= 0.4 * count.sum()) for count in counts)

    assert filled(0.4) < filled(2.0) / 2

"""The readers on generated scenes in the real layouts, and what wrong files are told."""

import shutil

import numpy as np
import pytest
from PIL import Image

from examples.segmentation.classes import CLASSES, FILE_IDS, IGNORED, colour, train_ids
from examples.segmentation.domains import ACDC, CITYSCAPES, DOMAINS, GTA5, get_domain
from examples.segmentation.generated_scenes import PAINT
from examples.uda.benchmarks import DatasetError
from tests.messages import names


def test_numbers_in_files_become_train_ids():
    numbers = np.arange(256, dtype=np.uint8)
    expected = [FILE_IDS.index(number) if number in FILE_IDS else IGNORED for number in range(256)]
    assert train_ids(numbers).tolist() == expected


def test_road_is_cityscapes_purple_and_ignored_is_black():
    picture = colour(np.array([[0, IGNORED]], dtype=np.uint8))
    assert picture.tolist() == [[[128, 64, 128], [0, 0, 0]]]


@pytest.mark.parametrize("domain", DOMAINS.values(), ids=DOMAINS)
def test_generated_scenes_are_in_the_real_layout(domain, scenes):
    domain.check(scenes, list(domain.counts), counts=False)
    found = domain.scenes(scenes, "train")
    assert len(found) == 10
    seen = set(np.concatenate([np.unique(domain.read_labels(scene)) for scene in found]).tolist())
    assert seen == {CLASSES.index(name) for name in PAINT}


def test_gta_and_cityscapes_store_other_numbers_than_acdc(scenes):
    for domain, sky in ((GTA5, 23), (CITYSCAPES, 23), (ACDC, 10)):
        scene = domain.scenes(scenes, "train")[0]
        assert sky in np.asarray(Image.open(scene.labels))
        assert 10 in domain.read_labels(scene)


def test_another_number_of_images_is_refused(scenes):
    with pytest.raises(DatasetError, match=names("train", 10, 2975, "val", 3, 500)):
        CITYSCAPES.check(scenes, ["train", "val"])


def test_missing_files_are_named(scenes, tmp_path):
    with pytest.raises(DatasetError, match=names("gta5", "download.visinf")):
        GTA5.check(tmp_path, ["train"])
    shutil.copytree(scenes / "acdc", tmp_path / "acdc")
    missing = ACDC.scenes(tmp_path, "train")[3].labels
    missing.unlink()
    with pytest.raises(DatasetError, match=names(1, missing)):
        ACDC.check(tmp_path, ["train"], counts=False)


def test_labels_that_are_no_labels_are_refused(scenes, tmp_path):
    shutil.copytree(scenes / "gta5", tmp_path / "gta5")
    first = GTA5.scenes(tmp_path, "train")[0]
    Image.new("L", (128, 64), 1).save(first.labels)
    with pytest.raises(DatasetError, match=names(19)):
        GTA5.check(tmp_path, ["train"], counts=False)
    Image.new("RGB", (128, 64)).save(first.labels)
    with pytest.raises(DatasetError, match=names("uint8", (64, 128, 3))):
        GTA5.check(tmp_path, ["train"], counts=False)
    Image.new("L", (12, 6), 7).save(first.labels)
    with pytest.raises(DatasetError, match=names((128, 64), (12, 6))):
        GTA5.check(tmp_path, ["train"], counts=False)


def test_unknown_domains_are_named():
    with pytest.raises(ValueError, match=names("gta5", "cityscapes", "acdc", "'gta'")):
        get_domain("gta")

"""The reader and the metrics on a real pair of KITTI, the format's own writer, the split and the check of files."""

import shutil

import numpy as np
import pytest
import torch

from examples.optical_flow.flow_metrics import FlowMeter
from examples.optical_flow.kitti import KittiError, KittiPairs, check, split
from examples.optical_flow.kitti_png import encode_flow, write_png16
from examples.optical_flow.moving_scenes import MovingScenes
from tests.conftest import SHARED_DATA
from tests.messages import names

REAL = SHARED_DATA / "flow_samples" / "kitti"
on_real_data = pytest.mark.skipif(not REAL.is_dir(), reason=f"no KITTI sample at {REAL}")


@pytest.fixture
def real_root(tmp_path):
    """The real pair in KITTI's folders."""
    folder = tmp_path / "KittiFlow" / "training"
    for source, target in (
        ("frame1.png", "image_2/000000_10.png"),
        ("frame2.png", "image_2/000000_11.png"),
        ("flow_gt.png", "flow_occ/000000_10.png"),
    ):
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REAL / source, folder / target)
    return tmp_path


@on_real_data
def test_the_real_pair_is_read_exactly(real_root):
    check(real_root, pairs=1)
    (pair,) = KittiPairs(real_root)
    decoded = np.load(REAL / "flow_gt_decoded.npz")
    flow, valid = (decoded[name] for name in sorted(decoded.files))
    assert pair.first.shape == pair.second.shape == (3, 375, 1242)
    assert pair.valid.sum() == 75_453
    assert np.array_equal(pair.valid.numpy(), valid)
    assert np.array_equal(pair.flow.permute(1, 2, 0).numpy()[valid], flow[valid])
    assert not torch.equal(pair.first, pair.second)


@on_real_data
def test_metrics_of_the_real_pair(real_root):
    (pair,) = KittiPairs(real_root)
    decoded = np.load(REAL / "flow_gt_decoded.npz")
    flow, valid = (decoded[name] for name in sorted(decoded.files))
    lengths = np.hypot(*flow[valid].astype(np.float64).T)
    still, exact = FlowMeter(), FlowMeter()
    still.add(torch.zeros_like(pair.flow), pair.flow, pair.valid)
    exact.add(pair.flow, pair.flow, pair.valid)
    assert still.scores().epe == pytest.approx(lengths.mean(), rel=1e-9)
    assert still.scores().fl_all == pytest.approx(100 * (lengths > 3).mean(), rel=1e-9)
    assert (exact.scores().epe, exact.scores().fl_all) == (0, 0)


@on_real_data
def test_the_writer_gives_the_reader_the_real_flow_back(real_root):
    (before,) = KittiPairs(real_root)
    path = real_root / "KittiFlow" / "training" / "flow_occ" / "000000_10.png"
    write_png16(encode_flow(before.flow.numpy(), before.valid.numpy()), path)
    (after,) = KittiPairs(real_root)
    assert torch.equal(after.valid, before.valid)
    assert torch.equal(after.flow[:, after.valid], before.flow[:, before.valid])


def test_too_long_a_flow_is_refused():
    flow, valid = np.full((2, 2, 2), 600.0, np.float32), np.zeros((2, 2), bool)
    encode_flow(flow, valid)
    valid[1, 0] = True
    with pytest.raises(ValueError, match=names(600)):
        encode_flow(flow, valid)


def test_split_holds_out_every_fifth_or_nothing():
    assert split(200, "all") == (list(range(200)), list(range(200)))
    train, measured = split(200, "held_out")
    assert measured == list(range(4, 200, 5))
    assert sorted(train + measured) == list(range(200))


def test_check_names_what_is_wrong(tmp_path):
    with pytest.raises(KittiError, match=names(600, "data_scene_flow.zip")):
        check(tmp_path)
    MovingScenes(height=8, width=8).write(tmp_path, pairs=3)
    check(tmp_path, pairs=3)
    with pytest.raises(KittiError, match=names(3, 2, "000002_10")):
        check(tmp_path, pairs=2)
    folder = tmp_path / "KittiFlow" / "training"
    shutil.copyfile(folder / "image_2" / "000001_10.png", folder / "flow_occ" / "000001_10.png")
    with pytest.raises(KittiError, match=names("flow_occ/000001_10.png", 16, (8, 2))):
        check(tmp_path, pairs=3)
    (folder / "image_2" / "000000_11.png").unlink()
    with pytest.raises(KittiError, match=names(1, 9, "000000_11.png")):
        check(tmp_path, pairs=3)

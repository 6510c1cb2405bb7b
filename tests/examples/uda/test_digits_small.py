"""MNIST and USPS from their own files: what is read, what is refused, and what the views do to a digit."""

import gzip
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from examples.uda.benchmarks import DatasetError
from examples.uda.benchmarks.digits_small import DIGITS_SMALL
from examples.uda.digit_views import PLAIN_VIEW, STRONG_VIEW, WEAK_VIEW, DigitView
from tests.conftest import SHARED_DATA
from tests.messages import names


def write_idx(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.write_bytes(gzip.compress(bytes([0, 0, 8, values.ndim]) + sizes + values.tobytes()))


def write_digits(root: Path, *, mnist_train: str = "train10k") -> None:
    """Twenty digits a split; image i of MNIST is filled with i."""
    labels = np.arange(20, dtype=np.uint8) % 10
    for prefix in (mnist_train, "t10k"):
        images = np.broadcast_to(np.arange(20, dtype=np.uint8)[:, None, None], (20, 28, 28))
        write_idx(root / "mnist" / f"{prefix}-images-idx3-ubyte.gz", images)
        write_idx(root / "mnist" / f"{prefix}-labels-idx1-ubyte.gz", labels)
    (root / "usps").mkdir()
    with h5py.File(root / "usps" / "usps.h5", "w") as file:
        for split in ("train", "test"):
            file[f"{split}/data"] = np.tile(np.linspace(0, 1, 256, dtype=np.float32), (20, 1))
            file[f"{split}/target"] = labels.astype(np.int32)


@pytest.mark.parametrize("mnist_train", ["train", "train10k"])
def test_files_are_read_as_grey_images_with_their_labels(tmp_path, mnist_train):
    write_digits(tmp_path, mnist_train=mnist_train)
    DIGITS_SMALL.check(tmp_path, counts=False)
    mnist = DIGITS_SMALL.dataset(tmp_path, "M", "train", role="source")
    image, label = mnist[13]
    assert image.size == (28, 28)
    assert np.asarray(image).tolist() == [[13] * 28] * 28
    assert label == 3
    usps, _ = DIGITS_SMALL.dataset(tmp_path, "U", "test", role="target")[0]
    assert np.array_equal(np.asarray(usps).ravel(), np.arange(256))


def test_the_official_training_set_comes_before_the_part_of_it(tmp_path):
    write_digits(tmp_path, mnist_train="train10k")
    write_idx(tmp_path / "mnist" / "train-images-idx3-ubyte.gz", np.zeros((30, 28, 28), np.uint8))
    write_idx(tmp_path / "mnist" / "train-labels-idx1-ubyte.gz", np.arange(30, dtype=np.uint8) % 10)
    assert len(DIGITS_SMALL.dataset(tmp_path, "M", "train", role="source")) == 30


def test_missing_files_are_named_with_what_to_download(tmp_path):
    with pytest.raises(DatasetError) as caught:
        DIGITS_SMALL.check(tmp_path)
    for words in ("train10k-images-idx3-ubyte.gz", "t10k-images", "usps.h5", "Download MNIST", str(tmp_path)):
        assert words in str(caught.value)


def test_wrong_counts_shapes_and_labels_are_refused_with_the_numbers(tmp_path):
    write_digits(tmp_path)
    with pytest.raises(DatasetError, match=names(20, "60,000", "10,000")):
        DIGITS_SMALL.check(tmp_path, domains=["M"])
    write_idx(tmp_path / "mnist" / "t10k-images-idx3-ubyte.gz", np.zeros((20, 27, 28), np.uint8))
    with pytest.raises(DatasetError, match=names((20, 27, 28))):
        DIGITS_SMALL.check(tmp_path, domains=["M"], counts=False)
    write_idx(tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz", np.full(20, 7, np.uint8))
    with pytest.raises(DatasetError, match=names([7], 0, 9)):
        DIGITS_SMALL.check(tmp_path, domains=["M"], counts=False)


def test_a_broken_file_is_refused_by_name(tmp_path):
    write_digits(tmp_path)
    path = tmp_path / "mnist" / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))
    with pytest.raises(DatasetError, match=names("t10k-images-idx3-ubyte.gz", "15,679")):
        DIGITS_SMALL.check(tmp_path, counts=False)
    path.write_bytes(gzip.compress(b"PNG?"))
    with pytest.raises(DatasetError, match=names("t10k-images-idx3-ubyte.gz")):
        DIGITS_SMALL.check(tmp_path, counts=False)


def test_the_plain_view_only_enlarges():
    half = np.zeros((16, 16), np.uint8)
    half[:, 8:] = 255
    view = PLAIN_VIEW(Image.fromarray(half))
    assert view.shape == (3, 32, 32)
    assert view.dtype == torch.float32
    assert (view[:, :, :15] == -1).all()
    assert (view[:, :, 17:] == 1).all()


def test_a_view_moves_the_digit_within_its_bounds():
    dot = np.zeros((32, 32), np.uint8)
    dot[14:18, 14:18] = 255
    places = []
    for _ in range(200):
        ink = (DigitView(shift=0.25)(Image.fromarray(dot))[0] + 1) / 2
        rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
        places.append([float((ink * axis).sum() / ink.sum()) - 15.5 for axis in (rows, columns)])
    reach = torch.tensor(places).abs().amax(dim=0)
    assert (reach <= 8.01).all()
    assert (reach > 6).all()


def test_views_are_drawn_from_torchs_generator():
    digit = Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8))
    for view in (WEAK_VIEW, STRONG_VIEW):
        torch.manual_seed(0)
        first, second = view(digit), view(digit)
        torch.manual_seed(0)
        assert torch.equal(view(digit), first)
        assert not torch.equal(first, second)


def test_the_strong_view_hides_a_square():
    white = Image.fromarray(np.full((28, 28), 255, np.uint8))
    view = DigitView(hidden=10)(white)
    assert int((view[0] == -1).sum()) == 100


def test_the_real_files_have_the_published_counts():
    if not (SHARED_DATA / "usps").is_dir():
        pytest.skip(f"no digits at {SHARED_DATA}")
    DIGITS_SMALL.check(SHARED_DATA)
    assert len(DIGITS_SMALL.dataset(SHARED_DATA, "U", "train", role="source")) == 7_291
    assert len(DIGITS_SMALL.dataset(SHARED_DATA, "M", "test", role="target")) == 10_000

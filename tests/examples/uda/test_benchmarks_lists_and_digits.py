"""ImageCLEF-DA's list files and the digits' raw files: what is read from them, and what damaged ones are told."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from examples.uda.benchmarks import DatasetError, get_benchmark
from examples.uda.fake_domains import FakeDomains
from tests.messages import names

CLEF = get_benchmark("imageclef_da")
DIGITS = get_benchmark("digits")


@pytest.fixture
def clef(tmp_path: Path) -> Path:
    FakeDomains(images_per_class=2, image_size=8).write("imageclef_da", tmp_path)
    return tmp_path


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    FakeDomains(images_per_class=1).write("digits", tmp_path)
    return tmp_path


def test_lists_may_lie_in_a_folder_of_their_own(clef: Path) -> None:
    (clef / "list").mkdir()
    for domain in "cip":
        (clef / f"{domain}List.txt").rename(clef / "list" / f"{domain}List.txt")
    CLEF.check(clef, counts=False)
    dataset = CLEF.dataset(clef, "I", "train", role="source")
    assert (len(dataset), dataset[23][1]) == (24, 11)


def test_the_list_decides_label_and_order(clef: Path) -> None:
    lines = (clef / "pList.txt").read_text().splitlines()
    (clef / "pList.txt").write_text("\n".join([lines[5], lines[0], lines[23]]) + "\n")
    assert CLEF.dataset(clef, "P", "test", role="target").labels == [2, 0, 11]


def test_missing_folder_list_and_images(clef: Path) -> None:
    (clef / "cList.txt").unlink()
    (clef / "p").rename(clef / "q")
    (clef / "i/004_0001.jpg").unlink()
    with pytest.raises(DatasetError) as error:
        CLEF.check(clef, counts=False)
    message = str(error.value)
    assert "C (c): list file missing, neither cList.txt nor list/cList.txt is there" in message
    assert "P (p): folder missing" in message
    assert "I (i): 1 of the 24 images in iList.txt missing: i/004_0001.jpg" in message
    assert "https://www.imageclef.org/2014/adaptation" in message


def test_labels_that_are_not_the_classes(clef: Path) -> None:
    text = (clef / "cList.txt").read_text()
    (clef / "cList.txt").write_text(text.replace(" 3\n", " 12\n"))
    with pytest.raises(DatasetError) as error:
        CLEF.check(clef, counts=False)
    assert "C (c): 1 classes missing (12 expected): boat" in str(error.value)
    assert "C (c): 1 labels unexpected (0 to 11): 12" in str(error.value)


def test_a_line_without_a_label(clef: Path) -> None:
    (clef / "cList.txt").write_text("c/000_0000.jpg 0\nc/000_0001.jpg boat\n")
    with pytest.raises(DatasetError, match=names("cList.txt", 2, "c/000_0001.jpg boat")):
        CLEF.check(clef, counts=False)


def test_every_class_has_fifty_images(clef: Path) -> None:
    with pytest.raises(DatasetError, match=names(600, 50, 24, "aeroplane 2", "bike 2")):
        CLEF.check(clef)
    lines = [f"c/000_0000.jpg {label}\n" for label in range(12) for _ in range(50)]
    (clef / "cList.txt").write_text("".join(lines))
    CLEF.check(clef, domains=["C"])


@pytest.mark.parametrize(("domain", "size", "mode"), [("S", 32, "RGB"), ("M", 28, "L"), ("U", 16, "L")])
def test_digits_have_their_own_size_and_ten_classes_in_both_splits(
    digits: Path, domain: str, size: int, mode: str
) -> None:
    DIGITS.check(digits, counts=False)
    for split in ("train", "test"):
        dataset = DIGITS.dataset(digits, domain, split, role="target")
        assert sorted(dataset.labels) == list(range(10))
        image, label = dataset[4]
        assert (image.size, image.mode, label) == ((size, size), mode, dataset.labels[4])


def test_train_and_test_are_different_images(digits: Path) -> None:
    for domain in DIGITS.domains:
        train, test = (DIGITS.dataset(digits, domain, split, role="target") for split in ("train", "test"))
        assert np.asarray(train[0][0]).tobytes() != np.asarray(test[0][0]).tobytes()


def test_svhn_is_read_upright_and_its_class_10_is_zero(digits: Path) -> None:
    pixels = np.zeros((32, 32, 3, 2), dtype=np.uint8)
    pixels[3, 20, 1, 1] = 200  # row 3, column 20, green, second image
    savemat(digits / "SVHN/train_32x32.mat", {"X": pixels, "y": np.array([[10], [7]], dtype=np.uint8)})
    dataset = DIGITS.dataset(digits, "S", "train", role="source")
    assert dataset.labels == [0, 7]
    assert dataset[1][0].getpixel((20, 3)) == (0, 200, 0)


def test_missing_files_of_the_digits(digits: Path) -> None:
    (digits / "MNIST/raw/t10k-labels-idx1-ubyte").unlink()
    (digits / "USPS/usps.t.bz2").unlink()
    (digits / "SVHN/train_32x32.mat").unlink()
    with pytest.raises(DatasetError) as error:
        DIGITS.check(digits, counts=False)
    message = str(error.value)
    assert "M (MNIST): 1 of 4 files missing: raw/t10k-labels-idx1-ubyte" in message
    assert "U (USPS): 1 of 2 files missing: usps.t.bz2" in message
    assert "S (SVHN): 1 of 2 files missing: train_32x32.mat" in message
    assert "http://ufldl.stanford.edu/housenumbers/" in message


def test_a_digit_without_images_and_wrong_numbers(digits: Path) -> None:
    arrays = {"X": np.zeros((32, 32, 3, 9), dtype=np.uint8), "y": np.arange(1, 10, dtype=np.uint8)[:, None]}
    savemat(digits / "SVHN/test_32x32.mat", arrays)
    with pytest.raises(DatasetError) as error:
        DIGITS.check(digits)
    message = str(error.value)
    assert "S (SVHN): test: 1 classes missing (10 expected): 0" in message
    assert "S (SVHN): test: 26,032 images expected, 9 found" in message
    assert "M (MNIST): train: 60,000 images expected, 10 found" in message
    assert "U (USPS): test: 2,007 images expected, 10 found" in message


def test_class_folders_in_place_of_lists(tmp_path: Path) -> None:
    for domain in "cip":
        for number, name in enumerate(CLEF.classes):
            (tmp_path / domain / name).mkdir(parents=True)
            for image in range(1 + (domain == "p") * (number == 2)):
                Image.new("RGB", (8, 8)).save(tmp_path / domain / name / f"{image}.jpg")
    CLEF.check(tmp_path, counts=False)
    dataset = CLEF.dataset(tmp_path, "P", "train", role="target")
    assert dataset.labels == [0, 1, 2, 2, *range(3, 12)]
    with pytest.raises(DatasetError, match="600 images expected in the 12 classes, 13 found"):
        CLEF.check(tmp_path, domains="P")
    (tmp_path / "i" / "people").rename(tmp_path / "i" / "persons")
    with pytest.raises(DatasetError, match="missing.*people"):
        CLEF.check(tmp_path, domains="I", counts=False)

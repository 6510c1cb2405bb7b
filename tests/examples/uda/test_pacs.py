"""PACS from its archives: what is read, what is refused, and the real files' counts."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples.uda.benchmarks import DatasetError
from examples.uda.benchmarks.pacs import PACS
from tests.conftest import SHARED_DATA
from tests.messages import names


def write_domain(root: Path, name: str, *, labels: list[int] | None = None, drop_bytes: int = 0) -> None:
    """One image a label, filled with the grey 10 * label, as JPEG."""
    labels = list(range(7)) if labels is None else labels
    files = []
    for label in labels:
        file = io.BytesIO()
        Image.new("L", (16, 16), 10 * label).save(file, "JPEG", quality=100)
        files.append(np.frombuffer(file.getvalue(), np.uint8))
    offsets = np.cumsum([0, *(len(file) for file in files)])
    (root / "pacs128").mkdir(parents=True, exist_ok=True)
    jpeg = np.concatenate(files)
    np.savez(
        root / "pacs128" / f"{name}.npz",
        jpeg=jpeg[: len(jpeg) - drop_bytes],
        offset=offsets,
        y=np.array(labels, np.uint8),
    )


def test_an_archive_is_read_as_rgb_images_with_their_labels(tmp_path):
    write_domain(tmp_path, "sketch", labels=[6, 5, 4, 3, 2, 1, 0])
    PACS.check(tmp_path, domains=["S"], counts=False)
    sketches = PACS.dataset(tmp_path, "S", "train", role="target")
    assert sketches.labels == [6, 5, 4, 3, 2, 1, 0]
    for index, label in enumerate(sketches.labels):
        image, given = sketches[index]
        assert (image.mode, image.size, given) == ("RGB", (16, 16), label)
        assert np.allclose(np.asarray(image), 10 * label, atol=2)


def test_there_are_twelve_tasks_and_seven_classes():
    assert len(set(PACS.tasks)) == 12
    assert all(source != target for source, target in PACS.tasks)
    assert len(PACS.class_names()) == 7


def test_missing_archives_are_named_with_what_to_download(tmp_path):
    write_domain(tmp_path, "photo")
    with pytest.raises(DatasetError) as caught:
        PACS.check(tmp_path, counts=False)
    text = str(caught.value)
    assert "photo.npz is missing" not in text
    for name in ("art_painting", "cartoon", "sketch"):
        assert f"{name}.npz is missing" in text
    assert "Download PACS" in text


def test_wrong_counts_labels_and_offsets_are_refused_with_the_numbers(tmp_path):
    write_domain(tmp_path, "photo")
    with pytest.raises(DatasetError, match=names(7, "1,670")):
        PACS.check(tmp_path, domains=["P"])
    write_domain(tmp_path, "photo", labels=[0, 1, 7])
    with pytest.raises(DatasetError, match=names([0, 1, 7], 0, 6)):
        PACS.check(tmp_path, domains=["P"], counts=False)
    write_domain(tmp_path, "photo", drop_bytes=1)
    with pytest.raises(DatasetError, match=names(8, 7)):
        PACS.check(tmp_path, domains=["P"], counts=False)
    np.savez(tmp_path / "pacs128" / "photo.npz", jpeg=np.zeros(3, np.uint8))
    with pytest.raises(DatasetError, match=names("offset", "y")):
        PACS.check(tmp_path, domains=["P"], counts=False)


def test_the_real_archives_have_the_published_counts():
    if not (SHARED_DATA / "pacs128").is_dir():
        pytest.skip(f"no PACS at {SHARED_DATA}")
    PACS.check(SHARED_DATA)
    image, label = PACS.dataset(SHARED_DATA, "C", "test", role="target")[0]
    assert (image.mode, image.size, label) == ("RGB", (128, 128), 0)

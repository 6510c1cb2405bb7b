"""The miniature benchmarks: accepted by the real ones' checks, deterministic, learnable, shifted between domains."""

import hashlib
import random
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import MNIST, USPS

from examples.uda.benchmarks import BENCHMARKS, get_benchmark
from examples.uda.fake_domains import FakeDomains
from examples.uda.fake_figures import CLASSES, STYLES, draw_figure
from tests.messages import names

NAMES = tuple(BENCHMARKS)


def fingerprint(root: Path) -> dict[str, str]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def pixels(name: str, root: Path, domain: str, split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    dataset = get_benchmark(name).dataset(root, domain, split, role="source")  # type: ignore[arg-type]
    images = [
        np.asarray(dataset[i][0].convert("RGB").resize((16, 16)), dtype=float).ravel() for i in range(len(dataset))
    ]
    return np.stack(images), np.array(dataset.labels)


def centroid_accuracy(trained: tuple, tested: tuple) -> float:
    images, labels = trained
    centroids = np.stack([images[labels == label].mean(axis=0) for label in range(labels.max() + 1)])
    distances = ((tested[0][:, None] - centroids[None]) ** 2).sum(axis=2)
    return float((distances.argmin(axis=1) == tested[1]).mean())


@pytest.mark.parametrize("name", NAMES)
def test_every_domain_is_accepted_and_read_back(name: str, tmp_path: Path) -> None:
    FakeDomains(images_per_class=1, image_size=8).write(name, tmp_path)
    benchmark = get_benchmark(name)
    benchmark.check(tmp_path, counts=False)
    for domain in benchmark.domains:
        if benchmark.source_free and domain == benchmark.tasks[0][0]:
            continue  # a model, not images
        for split in ("train", "test"):
            dataset = benchmark.dataset(tmp_path, domain, split, role="source")  # type: ignore[arg-type]
            assert sorted(dataset.labels) == list(range(len(benchmark.classes)))


@pytest.mark.parametrize("name", ["office31", "imageclef_da", "digits", "digits_small", "pacs"])
def test_the_seed_decides_the_files(name: str, tmp_path: Path) -> None:
    prints = []
    for folder, seed in [("a", 1), ("b", 1), ("c", 2)]:
        FakeDomains(images_per_class=1, image_size=16, seed=seed).write(name, tmp_path / folder)
        prints.append(fingerprint(tmp_path / folder))
    # scipy stamps the time of writing into its files
    same = [path for path in prints[0] if not path.endswith(".mat")]
    assert [prints[0][path] for path in same] == [prints[1][path] for path in same]
    images = [
        path
        for path in same
        if path.endswith((".jpg", "images-idx3-ubyte", "images-idx3-ubyte.gz", ".bz2", ".h5", ".npz"))
    ]
    assert all(prints[0][path] != prints[2][path] for path in images)


def test_svhns_arrays_follow_the_seed(tmp_path: Path) -> None:
    for folder, seed in [("a", 1), ("b", 1), ("c", 2)]:
        FakeDomains(images_per_class=1, seed=seed).write("digits", tmp_path / folder, ["S"])
    a, b, c = (pixels("digits", tmp_path / folder, "S")[0] for folder in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_one_domain_does_not_depend_on_the_others(tmp_path: Path) -> None:
    FakeDomains(image_size=8).write("office31", tmp_path / "all")
    FakeDomains(image_size=8).write("office31", tmp_path / "one", ["W"])
    assert not (tmp_path / "one/amazon").exists()
    get_benchmark("office31").check(tmp_path / "one", domains=["W"], counts=False)
    assert fingerprint(tmp_path / "one/webcam") == fingerprint(tmp_path / "all/webcam")


def test_size_and_number_of_the_images(tmp_path: Path) -> None:
    FakeDomains(images_per_class=3, image_size=20).write("visda2017", tmp_path)
    dataset = get_benchmark("visda2017").dataset(tmp_path, "real", "test", role="target")
    assert len(dataset) == 3 * 12
    assert dataset[0][0].size == (20, 20)


@pytest.mark.parametrize("name", ["office31", "visda2017", "digits"])
def test_classes_can_be_learnt_and_domains_differ(name: str, tmp_path: Path) -> None:
    FakeDomains(images_per_class=8, seed=0).write(name, tmp_path / "a")
    FakeDomains(images_per_class=8, seed=1).write(name, tmp_path / "b")
    benchmark = get_benchmark(name)
    source, target = benchmark.tasks[0]
    within = centroid_accuracy(pixels(name, tmp_path / "a", target), pixels(name, tmp_path / "b", target))
    across = centroid_accuracy(pixels(name, tmp_path / "a", source), pixels(name, tmp_path / "b", target))
    assert within > 0.6
    assert across < within - 0.1


def test_each_of_domainnets_classes_has_a_figure_of_its_own() -> None:
    assert CLASSES >= 345
    drawn = {draw_figure(label, "white", random.Random(0), 32).tobytes() for label in range(345)}
    assert len(drawn) == 345


def test_every_domain_has_a_style_of_its_own() -> None:
    assert len(STYLES) >= max(len(get_benchmark(name).domains) for name in NAMES)
    drawn = {draw_figure(0, style, random.Random(0), 32).tobytes() for style in STYLES}
    assert len(drawn) == len(STYLES)


def test_torchvision_reads_the_digits_without_a_network(tmp_path: Path) -> None:
    FakeDomains(images_per_class=2).write("digits", tmp_path)
    for train in (True, False):
        assert len(MNIST(tmp_path, train=train)) == 20
        assert len(USPS(tmp_path / "USPS", train=train)) == 20


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=names("images_per_class", "image_size", 0, 32)):
        FakeDomains(images_per_class=0)
    with pytest.raises(ValueError, match=names("office31", "A", "D", "W", "'X'")):
        FakeDomains().write("office31", tmp_path, ["X"])
    with pytest.raises(ValueError, match=names("benchmark")):
        FakeDomains().write("imagenet", tmp_path)

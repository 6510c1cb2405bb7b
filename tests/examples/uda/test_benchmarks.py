"""The benchmarks' facts, what they read from their layouts, and what damaged files are told."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from cmkd import prompt_order
from examples.uda.benchmarks import BENCHMARKS, DatasetError, ImageFolderBenchmark, get_benchmark
from examples.uda.fake_domains import FakeDomains
from tests.messages import names

FOLDERS = ("office_home", "office_home_partial", "office31", "visda2017", "domainnet")
TASKS = {
    "office_home": "Ar-Cl Ar-Pr Ar-Re Cl-Ar Cl-Pr Cl-Re Pr-Ar Pr-Cl Pr-Re Re-Ar Re-Cl Re-Pr",
    "office_home_partial": "Ar-Cl Ar-Pr Ar-Re Cl-Ar Cl-Pr Cl-Re Pr-Ar Pr-Cl Pr-Re Re-Ar Re-Cl Re-Pr",
    "office31": "A-D A-W D-A D-W W-A W-D",
    "imageclef_da": "I-P I-C P-I P-C C-I C-P",
    "visda2017": "synthetic-real",
    "digits": "S-M U-M M-U",
}


@pytest.fixture(scope="module")
def office31(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("office31")
    FakeDomains(images_per_class=2, image_size=8).write("office31", root)
    return root


@pytest.fixture
def damaged(office31: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(office31, tmp_path / "office31"))


def refused(name: str, root: Path, *, counts: bool = False) -> str:
    with pytest.raises(DatasetError) as error:
        get_benchmark(name).check(root, counts=counts)
    return str(error.value)


@pytest.mark.parametrize(("name", "tasks"), TASKS.items())
def test_the_tasks_are_in_the_order_of_the_papers_tables(name: str, tasks: str) -> None:
    assert ["-".join(task) for task in get_benchmark(name).tasks] == tasks.split()


def test_domainnet_has_its_thirty_pairs_row_by_row() -> None:
    domains = ["clp", "inf", "pnt", "qdr", "rel", "skt"]
    assert list(get_benchmark("domainnet").tasks) == [(a, b) for a in domains for b in domains if a != b]


@pytest.mark.parametrize(
    ("name", "classes"), {"office_home": 65, "office31": 31, "visda2017": 12, "domainnet": 345}.items()
)
def test_classes_are_sorted_as_an_image_folder_sorts_them(name: str, classes: int) -> None:
    names = get_benchmark(name).classes
    assert len(set(names)) == classes
    assert list(names) == sorted(names)


@pytest.mark.parametrize(
    ("name", "totals"),
    {
        "office_home": (15_588, 15_588),
        "office31": (4_110, 4_110),
        "domainnet": (586_575, 596_006),
        "visda2017": (152_397 + 55_388, 152_397 + 55_388),
    }.items(),
)
def test_the_published_totals(name: str, totals: tuple[int, int]) -> None:
    benchmark = get_benchmark(name)
    assert isinstance(benchmark, ImageFolderBenchmark)
    counts = benchmark.images.values()
    assert (sum(count[0] for count in counts), sum(count[-1] for count in counts)) == totals


def test_only_visda_is_scored_as_the_mean_of_its_classes() -> None:
    assert [name for name, b in BENCHMARKS.items() if b.metric == "mean_per_class"] == ["visda2017"]


def test_class_names_are_words() -> None:
    assert get_benchmark("office_home").class_names()[:2] == ["Alarm Clock", "Backpack"]
    assert get_benchmark("office31").class_names()[:3] == ["backpack", "bike", "bike helmet"]  # the folder: back_pack


def test_the_prompts_in_the_released_codes_order_fit_33_of_domainnets_345_classes() -> None:
    folder = get_benchmark("domainnet").class_names()
    lowercase = prompt_order(folder, "lowercase")
    assert folder[:4] == ["The Eiffel Tower", "The Great Wall of China", "The Mona Lisa", "aircraft carrier"]
    assert sorted(folder) == sorted(lowercase)
    assert sum(a == b for a, b in zip(folder, lowercase, strict=True)) == 33


@pytest.mark.parametrize("name", ["office31", "visda2017", "imageclef_da"])
def test_labels_follow_the_class_order(name: str, tmp_path: Path) -> None:
    FakeDomains(images_per_class=1, image_size=8).write(name, tmp_path)
    benchmark = get_benchmark(name)
    for domain in benchmark.domains:
        dataset = benchmark.dataset(tmp_path, domain, "train", role="target")
        assert dataset.labels == list(range(len(benchmark.classes)))
        image, label = dataset[3]
        assert (image.mode, image.size, label) == ("RGB", (8, 8), 3)


def test_an_image_is_labelled_by_the_folder_it_lies_in(damaged: Path) -> None:
    Image.new("L", (5, 4)).save(damaged / "dslr/images/mug/zzz.PNG")
    (damaged / "dslr/images/mug/Thumbs.db").write_text("not an image")
    (damaged / "dslr/images/list.txt").write_text("not a class")
    benchmark = get_benchmark("office31")
    benchmark.check(damaged, counts=False)
    dataset = benchmark.dataset(damaged, "D", "test", role="source")
    sizes = [(dataset[i][0].size, dataset[i][1]) for i in range(len(dataset))]
    assert len(sizes) == 2 * 31 + 1
    assert [label for size, label in sizes if size == (5, 4)] == [benchmark.classes.index("mug")]
    assert {dataset[i][0].mode for i in range(len(dataset))} == {"RGB"}


def test_a_transform_is_applied(office31: Path) -> None:
    dataset = get_benchmark("office31").dataset(office31, "A", "train", lambda image: image.size, role="source")
    assert dataset[0] == ((8, 8), 0)


def test_a_partial_set_target_has_the_first_25_classes(tmp_path: Path) -> None:
    FakeDomains(images_per_class=1, image_size=8).write("office_home_partial", tmp_path)
    benchmark = get_benchmark("office_home_partial")
    benchmark.check(tmp_path, counts=False)
    assert set(benchmark.dataset(tmp_path, "Cl", "train", role="source").labels) == set(range(65))
    for split in ("train", "test"):
        assert set(benchmark.dataset(tmp_path, "Cl", split, role="target").labels) == set(range(25))
    assert (benchmark.classes[0], benchmark.classes[24]) == ("Alarm_Clock", "Fork")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_no_root(name: str, tmp_path: Path) -> None:
    message = refused(name, tmp_path / "nowhere")
    assert f"{tmp_path / 'nowhere'} is not as expected:\n  there is no such folder" in message
    assert "Download" in message
    assert "http" in message or "github.com" in message
    assert get_benchmark(name).layout in message


@pytest.mark.parametrize("name", FOLDERS)
def test_an_empty_root_names_every_domain(name: str, tmp_path: Path) -> None:
    message = refused(name, tmp_path)
    for domain, folder in get_benchmark(name).domains.items():
        assert f"{domain} ({folder}): folder missing" in message


def test_a_missing_domain_is_named_with_what_lies_beside_it(tmp_path: Path) -> None:
    FakeDomains(images_per_class=1, image_size=8).write("office_home", tmp_path)
    (tmp_path / "Real World").rename(tmp_path / "Real_World")
    message = refused("office_home", tmp_path)
    assert "Re (Real World): folder missing; beside it: Art, Clipart, Product, Real_World" in message
    assert "https://www.hemanthdv.org/officeHomeDataset.html" in message
    assert "Art)" not in message


def test_missing_unexpected_and_empty_classes_are_named(damaged: Path) -> None:
    shutil.rmtree(damaged / "amazon/images/mug")
    (damaged / "webcam/images/gadget").mkdir()
    for image in (damaged / "dslr/images/pen").iterdir():
        image.unlink()
    message = refused("office31", damaged)
    assert "A (amazon/images): 1 classes missing (31 expected): mug" in message
    assert "W (webcam/images): 1 classes unexpected (31 expected): gadget" in message
    assert "D (dslr/images): 1 classes without images (31 expected): pen" in message
    assert "https://faculty.cc.gatech.edu/~judy/domainadapt/" in message


def test_long_lists_are_cut(damaged: Path) -> None:
    for folder in sorted((damaged / "amazon/images").iterdir())[:8]:
        shutil.rmtree(folder)
    assert "8 classes missing (31 expected): back_pack, bike, bike_helmet, bookcase, bottle and 3 more" in refused(
        "office31", damaged
    )


def test_a_wrong_number_of_images_is_told_with_both_numbers(office31: Path) -> None:
    message = refused("office31", office31, counts=True)
    assert "A (amazon/images): 2,817 images expected in the 31 classes, 62 found" in message


def test_the_published_number_and_a_documented_variant_pass(damaged: Path) -> None:
    benchmark = get_benchmark("office31")
    assert isinstance(benchmark, ImageFolderBenchmark)
    small = replace(benchmark, images=dict.fromkeys("ADW", (61, 62)))
    small.check(damaged)
    next((damaged / "dslr/images/pen").iterdir()).unlink()
    small.check(damaged)
    next((damaged / "dslr/images/mug").iterdir()).unlink()
    with pytest.raises(DatasetError, match=names(61, 62, 31, 60)):
        small.check(damaged)


def test_only_the_domains_asked_for_are_checked(damaged: Path) -> None:
    shutil.rmtree(damaged / "amazon")
    benchmark = get_benchmark("office31")
    benchmark.check(damaged, domains=("D", "W"), counts=False)
    with pytest.raises(DatasetError, match=names("A", "amazon/images")):
        benchmark.check(damaged, domains=("A", "W"), counts=False)


def test_unknown_names_are_refused(office31: Path) -> None:
    with pytest.raises(ValueError, match=names("benchmark", "office_home", "'office32'")):
        get_benchmark("office32")
    with pytest.raises(ValueError, match=names("office31", "A", "D", "W", "'X'")):
        get_benchmark("office31").check(office31, domains=["X"])
    with pytest.raises(ValueError, match=names("office31", "A", "D", "W", "'X'")):
        get_benchmark("office31").dataset(office31, "X", "train", role="source")

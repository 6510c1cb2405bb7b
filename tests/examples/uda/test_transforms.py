"""The paper's transforms: sizes, normalisation, randomness, and what each pipeline does to an image."""

import pickle
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from cmkd import PRESETS
from examples.uda.rand_augment import RandAugment
from examples.uda.transforms import (
    BENCHMARKS,
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    ROLES,
    TwoViews,
    build_transform,
)
from tests.messages import names

IDENTITY = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
UM = ("U", "M")


def photo(width: int = 40, height: int = 30) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height))


def columns(width: int, height: int) -> Image.Image:
    """Every column has its own grey: 2 times its number."""
    return Image.fromarray(np.tile(2 * np.arange(width, dtype=np.uint8), (height, 1)))


def first_row(image: Tensor) -> list[int]:
    return (image[0, 0] * 255).round().int().tolist()


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_every_pipeline_gives_a_square_float_image(benchmark: str, role: str) -> None:
    for image in (photo(), photo(20, 50), photo().convert("L"), photo().convert("RGBA")):
        result = build_transform(benchmark, role, task=UM, image_size=48)(image)  # type: ignore[arg-type]
        assert result.shape == (3, 48, 48)
        assert result.dtype == torch.float32


def test_the_papers_size_is_224() -> None:
    assert build_transform("office_home", "test", task=("Ar", "Cl"))(photo()).shape == (3, 224, 224)


@pytest.mark.parametrize(
    ("arguments", "mean", "std"),
    [({}, CLIP_MEAN, CLIP_STD), ({"mean": IMAGENET_MEAN, "std": IMAGENET_STD}, IMAGENET_MEAN, IMAGENET_STD)],
)
def test_images_are_scaled_and_normalised_by_channel(arguments: dict, mean: tuple, std: tuple) -> None:
    image = Image.new("RGB", (40, 40), (255, 51, 0))
    result = build_transform("visda2017", "test", task=("synthetic", "real"), image_size=16, **arguments)(image)
    expected = [(value - m) / s for value, m, s in zip((1.0, 0.2, 0.0), mean, std, strict=True)]
    torch.testing.assert_close(result[:, 7, 7], torch.tensor(expected))


@pytest.mark.parametrize("preset", PRESETS)
def test_photos_are_squeezed_for_the_test_and_visdas_as_the_preset_says(preset: str) -> None:
    wide = columns(96, 32)
    options = {"image_size": 32, "preset": PRESETS[preset], **IDENTITY}
    squeezed = build_transform("office31", "test", task=("A", "D"), **options)(wide)
    assert first_row(squeezed)[0] < 10
    assert first_row(squeezed)[-1] > 180
    visda = build_transform("visda2017", "test", task=("synthetic", "real"), **options)(wide)
    cropped = list(range(64, 128, 2))
    assert first_row(visda) == (cropped if preset == "paper" else first_row(squeezed))


@pytest.mark.parametrize("role", ["source_train", "target_train"])
@pytest.mark.parametrize("benchmark", ["office_home", "office31", "imageclef_da", "domainnet"])
def test_training_photos_are_crops_of_256_to_224_and_flips(benchmark: str, role: str) -> None:
    torch.manual_seed(0)
    transform = build_transform(benchmark, role, task=("A", "D"), image_size=56, **IDENTITY)  # type: ignore[arg-type]
    rows = [first_row(transform(columns(64, 64))) for _ in range(60)]
    for row in rows:
        assert sorted(row) == list(range(min(row), min(row) + 112, 2))
    assert {min(row) for row in rows} == set(range(0, 18, 2))
    assert {row[0] < row[-1] for row in rows} == {True, False}


@pytest.mark.parametrize("geometry", ["crop", "squash"])
def test_training_on_visda_flips_and_takes_what_the_test_takes(geometry: str) -> None:
    torch.manual_seed(0)
    preset = replace(PRESETS["paper"], view_geometry=geometry)
    task = ("synthetic", "real")
    options = {"task": task, "image_size": 32, "preset": preset, **IDENTITY}
    transform = build_transform("visda2017", "source_train", **options)
    rows = {tuple(first_row(transform(columns(96, 32)))) for _ in range(20)}
    tested = tuple(first_row(build_transform("visda2017", "test", **options)(columns(96, 32))))
    assert rows == {tested, tested[::-1]}
    assert (tested == tuple(range(64, 128, 2))) == (geometry == "crop")


def test_digits_are_neither_flipped_nor_cropped_below_three_quarters() -> None:
    torch.manual_seed(0)
    transform = build_transform("digits", "target_train", task=("S", "M"), image_size=64, **IDENTITY)
    rows = [first_row(transform(columns(64, 64))) for _ in range(60)]
    assert all(row == sorted(row) for row in rows)
    widths = {row[-1] - row[0] for row in rows}
    assert max(widths) == 126  # the whole image, as scales over 1 do not fit
    assert 70 < min(widths) < 126


def test_usps_is_padded_and_turned_only_as_the_source_of_mnist() -> None:
    white = Image.new("L", (28, 28), 255)

    def darkest(role: str, task: tuple[str, str]) -> float:
        torch.manual_seed(0)
        transform = build_transform("digits", role, task=task, image_size=28, **IDENTITY)  # type: ignore[arg-type]
        return min(float(transform(white).min()) for _ in range(5))

    assert darkest("source_train", ("U", "M")) == 0
    for role, task in [("target_train", ("U", "M")), ("source_train", ("M", "U")), ("source_train", ("S", "M"))]:
        assert darkest(role, task) == 1


def test_usps_moves_by_up_to_four_pixels_and_turns() -> None:
    torch.manual_seed(0)
    transform = build_transform("digits", "source_train", task=("U", "M"), image_size=28, **IDENTITY)
    views = [transform(columns(28, 28))[0] * 255 for _ in range(30)]
    middles = [float(view[13:15, 13:15].mean()) for view in views]  # where turning changes nothing
    assert 10 < max(middles) - min(middles) <= 18  # 8 columns, 2 apart
    assert max(float(view[10:18, 14].std()) for view in views) > 0.5  # columns are upright no more


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_torchs_seed_decides_every_draw(benchmark: str, role: str) -> None:
    transform = build_transform(benchmark, role, task=UM, image_size=32)  # type: ignore[arg-type]

    def draws(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.stack([transform(photo()) for _ in range(6)])

    random.seed(8)
    np.random.seed(8)
    first = draws(1)
    random.seed(9)
    np.random.seed(9)
    assert torch.equal(first, draws(1))
    assert torch.equal(first, draws(2)) == (role == "test")


@pytest.mark.parametrize(
    ("benchmark", "strong_resize", "left"),
    [("office_home", 224, 0), ("office_home", 256, 4), ("digits", 256, 4), ("visda2017", 256, 0)],
)
def test_the_strong_view_resizes_to_the_presets_size(
    benchmark: str, strong_resize: int, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 56 px, a quarter of the paper's, 256 is 64: the crop leaves out 4 columns a side."""
    for name in ("RandomHorizontalFlip", "ColorJitter"):
        monkeypatch.setattr(v2, name, lambda *arguments, **options: v2.Identity())
    monkeypatch.setattr("examples.uda.transforms.RandAugment", lambda fill: v2.Identity())
    preset = replace(PRESETS["paper"], strong_resize=strong_resize)
    transform = build_transform(benchmark, "target_strong", task=("A", "D"), image_size=56, preset=preset, **IDENTITY)
    side = 56 + 2 * left  # an image of just the size that is resized to
    assert first_row(transform(columns(side, side))) == [2 * column for column in range(left, left + 56)]


@pytest.mark.parametrize(("preset", "fill"), [("paper", (128,) * 3), ("official", (123, 117, 104))])
def test_the_strong_view_fills_with_grey_or_the_encoders_mean(preset: str, fill: tuple, monkeypatch) -> None:
    monkeypatch.setattr(v2, "RandomHorizontalFlip", lambda: v2.Identity())
    monkeypatch.setattr(v2, "ColorJitter", lambda **options: v2.Identity())
    torch.manual_seed(0)
    transform = build_transform(
        "office_home", "target_strong", task=("Ar", "Cl"), image_size=32, preset=PRESETS[preset], mean=CLIP_MEAN
    )
    white = Image.new("RGB", (32, 32), "white")
    scale, shift = torch.tensor(CLIP_STD)[:, None, None], torch.tensor(CLIP_MEAN)[:, None, None]
    colours = set()
    for _ in range(60):
        levels = ((transform(white) * scale + shift) * 255).round().int()
        colours |= set(map(tuple, levels.flatten(1).T.tolist()))
    assert fill in colours


def test_the_strong_view_leaves_the_other_generators_alone() -> None:
    transform = build_transform("office_home", "target_strong", task=("Ar", "Cl"), image_size=32)
    random.seed(3)
    np.random.seed(3)
    expected = random.random(), np.random.random()
    random.seed(3)
    np.random.seed(3)
    for _ in range(4):
        transform(photo())
    assert (random.random(), np.random.random()) == expected


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_rand_augment_is_in_the_strong_view_only(benchmark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []

    def record(self: RandAugment, image: Image.Image) -> Image.Image:
        seen.append(image.size)
        return image

    monkeypatch.setattr(RandAugment, "__call__", record)
    for role in ROLES:
        build_transform(benchmark, role, task=UM, image_size=32)(photo())  # type: ignore[arg-type]
    assert seen == [(32, 32)]


def test_rand_augment_is_the_papers() -> None:
    described = repr(RandAugment().augment)
    assert "n=2" in described
    assert described.count("m=10") == described.count("mstd=0.5") == described.count("AugmentOp(") > 10


def test_rand_augment_changes_images() -> None:
    torch.manual_seed(0)
    augment, image = RandAugment(), photo()
    results = [augment(image) for _ in range(12)]
    assert len({result.tobytes() for result in results}) > 6
    assert {result.size for result in results} == {image.size}


def test_the_strong_view_flips_and_jitters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RandAugment, "__call__", lambda self, image: image)
    torch.manual_seed(0)
    transform = build_transform("office_home", "target_strong", task=("Ar", "Cl"), image_size=32, **IDENTITY)
    views = [transform(columns(32, 32)) for _ in range(20)]
    assert {first_row(view)[0] < first_row(view)[-1] for view in views} == {True, False}
    brightness = [float(view.mean()) for view in views]
    assert max(brightness) > 1.2 * min(brightness)


def test_two_views_are_of_the_same_image() -> None:
    views = TwoViews(lambda image: torch.tensor(image.width), lambda image: torch.tensor(image.height))
    assert [int(view) for view in views(photo(40, 30))] == [40, 30]


@pytest.mark.parametrize("role", ROLES)
def test_transforms_can_be_sent_to_a_data_loaders_workers(role: str) -> None:
    transform = build_transform("digits", role, task=UM, image_size=32)  # type: ignore[arg-type]
    copy = pickle.loads(pickle.dumps(transform))
    torch.manual_seed(0)
    expected = transform(photo())
    torch.manual_seed(0)
    assert torch.equal(copy(photo()), expected)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=names("benchmark", "office_home", "'office'")):
        build_transform("office", "test", task=UM)
    with pytest.raises(ValueError, match=names("role", "source_train", "'train'")):
        build_transform("digits", "train", task=UM)  # type: ignore[arg-type]

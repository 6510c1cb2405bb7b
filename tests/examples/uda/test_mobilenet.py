"""The ImageNet MobileNetV2 from its archive: names, padding, and what it sees in photographs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from examples.uda.benchmarks.pacs import PACS
from examples.uda.mobilenet import MEAN, STD, ImageNetMobileNet, MobileNetV2, load_mobilenet
from examples.uda.text_embedding_teacher import plain_name, shared_name, text_embedding_teacher
from tests.conftest import SHARED_DATA
from tests.messages import names

DOGS = range(152, 270)  # Chihuahua to Mexican hairless, "background" being class 0
ELEPHANTS = (102, 386, 387)  # tusker, Indian elephant, African elephant


@pytest.fixture(scope="module")
def network() -> ImageNetMobileNet:
    if not (SHARED_DATA / "mobilenet_v2").is_dir():
        pytest.skip(f"no MobileNetV2 at {SHARED_DATA}")
    return load_mobilenet(SHARED_DATA)


def photographs(label: int, count: int) -> torch.Tensor:
    photos = PACS.dataset(SHARED_DATA, "P", "test", role="target")
    chosen = [photos.image(i) for i, given in enumerate(photos.labels) if given == label][:count]
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in chosen])).permute(0, 3, 1, 2) / 255
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def test_parameters_have_torchvisions_names_less_the_folded_batch_norm():
    models = pytest.importorskip("torchvision.models")
    theirs = models.mobilenet_v2(weights=None)
    convolutions = [name for name, module in theirs.features.named_modules() if isinstance(module, nn.Conv2d)]
    ours = dict(MobileNetV2().features.named_parameters())
    assert set(ours) == {f"{name}.{part}" for name in convolutions for part in ("weight", "bias")}
    for name in convolutions:
        assert ours[f"{name}.weight"].shape == theirs.features.get_submodule(name).weight.shape


def test_strided_convolutions_pad_as_tensorflow_does():
    # SAME padding of even sizes puts the first 3x3 window on the first three pixels; torch's padding=1 does not.
    first = MobileNetV2().features[0]
    image = torch.randn(1, 3, 32, 32)
    weight, bias = first[0].weight, first[0].bias
    out = first(image)
    assert out.shape == (1, 32, 16, 16)
    corner = (weight * image[:, :, :3, :3]).sum(dim=(1, 2, 3)) + bias
    torch.testing.assert_close(out[0, :, 0, 0], corner.clamp(0, 6))
    end = (weight[:, :, :2, :2] * image[:, :, 30:, 30:]).sum(dim=(1, 2, 3)) + bias
    torch.testing.assert_close(out[0, :, 15, 15], end.clamp(0, 6))


def test_sizes_that_would_be_padded_otherwise_are_refused():
    with pytest.raises(ValueError, match=names((1, 3, 100, 128))):
        MobileNetV2()(torch.zeros(1, 3, 100, 128))


def test_missing_files_are_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=names("mobilenet_v2_imagenet_u8.npz")):
        load_mobilenet(tmp_path)


@torch.no_grad()
def test_dogs_and_elephants_are_recognised_in_photographs(network):
    for label, expected in ((0, DOGS), (1, ELEPHANTS)):
        images = photographs(label, 40)
        features = network.encoder(images)
        assert features.shape == (40, 1280)
        predicted = network.classifier(features).argmax(dim=1).tolist()
        assert sum(number in expected for number in predicted) >= 28
    assert network.class_names[DOGS[0]] == "Chihuahua"
    assert network.class_names[0] == "background"


def test_a_shared_name_is_a_synonym_or_its_last_word():
    vocabulary = {name: torch.zeros(1) for name in ("elephant", "crane", "bow")}
    assert shared_name("African elephant, Loxodonta africana", vocabulary) == "elephant"
    assert shared_name("something crane, bow", vocabulary) == "bow"
    assert shared_name("tench, Tinca tinca", vocabulary) is None
    assert plain_name("Bow_(weapon)") == "bow"


@torch.no_grad()
def test_the_stand_in_teacher_knows_classes_that_it_has_no_label_of(network):
    if not (SHARED_DATA / "clip_text_embeddings").is_dir():
        pytest.skip(f"no text embeddings at {SHARED_DATA}")
    teacher = text_embedding_teacher(network, SHARED_DATA, PACS.class_names())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    right = total = 0
    for label in range(7):
        logits = teacher(network.encoder(photographs(label, 15)))
        assert logits.shape == (15, 7)
        right += int((logits.argmax(dim=1) == label).sum())
        total += 15
    assert right / total > 0.45  # chance is 0.14
    with pytest.raises(KeyError, match=names("gizmo")):
        text_embedding_teacher(network, SHARED_DATA, ["dog", "gizmo"])

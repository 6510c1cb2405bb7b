"""Counts of Table VII against sums written out by hand."""

import pytest

from examples.peft_comparison.dsp import PAPER, readings

RN50_HEAD, VIT_HEAD = 1024 * 65, 512 * 65
BLOCKS = (  # width, blocks, input of the first, of RN50
    (64, 3, 64),
    (128, 4, 256),
    (256, 6, 512),
    (512, 3, 1024),
)


def rn50_convolutions():
    """Inputs, kernel and outputs of every convolution."""
    yield from ((3, 9, 32), (32, 9, 32), (32, 9, 64))
    for width, blocks, first in BLOCKS:
        yield first, 1, 4 * width  # downsampling
        for block in range(blocks):
            yield (first if block == 0 else 4 * width), 1, width
            yield width, 9, width
            yield width, 1, 4 * width


@pytest.fixture(scope="module")
def counted():
    return {(r.architecture, r.method, r.modules): r for r in readings()}


def test_rn50(counted):
    convolutions = list(rn50_convolutions())
    low_rank = sum(inputs * kernel + outputs for inputs, kernel, outputs in convolutions)
    norms = sum(outputs for _, _, outputs in convolutions)
    pool = 3 * 2048 + 1024
    assert counted["RN50", "BitFit", "BatchNorm's biases"].encoder == norms == 26_624
    assert counted["RN50", "BitFit", "those and the attention pool's"].encoder == norms + pool
    for rank in (1, 4):
        assert counted["RN50", f"LoRA r={rank}", "every convolution"].encoder == rank * low_rank
    assert low_rank == 79_963
    assert all(r.head == RN50_HEAD for key, r in counted.items() if key[0] == "RN50")


def test_vit(counted):
    attention, mlp = (768 + 3 * 768) + (768 + 768), 2 * (768 + 4 * 768)
    patches = 3 * 16 * 16 + 768
    tower = 12 * (attention + mlp) + patches
    text = 12 * ((512 + 3 * 512) + (512 + 512) + 2 * (512 + 4 * 512))
    projections = (768 + 512) + (512 + 512)
    layers = 12 * 4 + 1
    biases = 12 * (3 * 768 + 768 + 4 * 768 + 768)

    def encoder(method, modules):
        return counted["ViT-B-16", method, modules].encoder

    assert encoder("BitFit", "biases but LayerNorm's") == biases == 82_944
    assert encoder("BitFit", "all biases") == biases + (2 * 12 + 2) * 768
    for rank in (1, 4):
        assert encoder(f"LoRA r={rank}", "image tower: attention, MLP, patches") == rank * tower
        assert encoder(f"LoRA r={rank}", "every dense map of both towers") == rank * (tower + text + projections)
        name = f"AdaLoRA r={2 * rank} to {rank}"
        assert encoder(name, "MLP") == rank * (12 * mlp + 24)
        assert encoder(name, "attention, MLP, patches") == rank * (tower + layers)
    assert encoder("SHiRA r=1", "MLP") == 12 * mlp


@pytest.mark.parametrize(
    ("architecture", "method", "modules"),
    [
        ("RN50", "Linear probe", "head"),
        ("RN50", "BitFit", "BatchNorm's biases"),
        ("RN50", "LoRA r=1", "every convolution"),
        ("ViT-B-16", "Linear probe", "head"),
        ("ViT-B-16", "BitFit", "biases but LayerNorm's"),
        ("ViT-B-16", "LoRA r=1", "every dense map of both towers"),
        ("ViT-B-16", "LoRA r=4", "every dense map of both towers"),
    ],
)
def test_readings_that_meet_the_paper(architecture, method, modules, counted):
    reading = counted[architecture, method, modules]
    assert reading.dsp == pytest.approx(PAPER[architecture][method], abs=0.02)


def test_full_fine_tuning_to_the_papers_rounding(counted):
    for architecture, rounded in (("RN50", 38.3), ("ViT-B-16", 86.2)):
        reading = counted[architecture, "Full fine-tuning", "all weights"]
        assert reading.encoder / 1e6 == pytest.approx(rounded, abs=0.05)
        assert 12 * rounded + 12 * reading.head / 1e6 == pytest.approx(reading.paper, abs=0.005)

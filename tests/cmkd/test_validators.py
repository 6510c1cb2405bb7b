"""The label-free scores against loops, what they reward, and how they behave at the edges."""

import math

import numpy as np
import pytest
import torch

import cmkd.validators
from cmkd import VALIDATORS
from tests.messages import names

IMAGES, CLASSES = 23, 4


def logits(scale: float = 2.0, seed: int = 0, images: int = IMAGES):
    torch.manual_seed(seed)
    return scale * torch.randn(images, CLASSES, dtype=torch.float64)


def softmax_rows(x) -> list[list[float]]:
    return [[math.exp(v) / sum(math.exp(u) for u in row) for v in row] for row in x.tolist()]


def loop_entropy(p: list[float]) -> float:
    return -sum(v * math.log(v) for v in p if v > 0)


def loop_snd(views: list[list[float]]) -> float:
    total = 0.0
    for i, a in enumerate(views):
        others = [b for j, b in enumerate(views) if j != i]
        cosines = [sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b) for b in others]
        exps = [math.exp(c / 0.05) for c in cosines]
        total += loop_entropy([e / sum(exps) for e in exps])
    return total / len(views)


def expected(name: str, x) -> float:
    views = softmax_rows(x)
    mean_entropy = sum(map(loop_entropy, views)) / len(views)
    if name == "entropy":
        return -mean_entropy
    if name == "im":
        return loop_entropy([sum(column) / len(views) for column in zip(*views, strict=True)]) - mean_entropy
    if name == "snd":
        return loop_snd(views)
    return float(np.linalg.norm(np.array(views), "nuc")) / math.sqrt(IMAGES * CLASSES)


@pytest.mark.parametrize("name", VALIDATORS)
def test_matches_the_loop(name):
    assert VALIDATORS[name](logits()) == pytest.approx(expected(name, logits()), rel=1e-9)


def test_chunks_of_snd_do_not_change_it(monkeypatch):
    whole = VALIDATORS["snd"](logits())
    monkeypatch.setattr(cmkd.validators, "SND_ROWS", 5)
    assert VALIDATORS["snd"](logits()) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("name", ["entropy", "im", "bnm"])
def test_certain_and_even_predictions_score_higher_than_undecided_ones(name):
    labels = torch.arange(40) % CLASSES
    noise = torch.randn(40, CLASSES, generator=torch.Generator().manual_seed(0))
    decided = 10 * torch.nn.functional.one_hot(labels, CLASSES) + noise
    assert VALIDATORS[name](decided) > VALIDATORS[name](noise)


def test_tight_clusters_have_denser_neighbourhoods():
    centres = 4.0 * torch.nn.functional.one_hot(torch.arange(40) % CLASSES, CLASSES)
    noise = torch.randn(40, CLASSES, generator=torch.Generator().manual_seed(0))
    assert VALIDATORS["snd"](centres + 0.1 * noise) > VALIDATORS["snd"](centres + 2 * noise)


@pytest.mark.parametrize("name", ["im", "bnm"])
def test_collapse_onto_one_class_is_not_rewarded(name):
    collapsed = torch.tensor([[10.0, 0, 0, 0]]).repeat(40, 1)
    spread = 10.0 * torch.nn.functional.one_hot(torch.arange(40) % CLASSES, CLASSES)
    assert VALIDATORS[name](collapsed) < VALIDATORS[name](spread)


def test_their_highest_values():
    certain = 1e4 * torch.nn.functional.one_hot(torch.arange(40) % CLASSES, CLASSES).float()
    assert VALIDATORS["entropy"](certain) == 0
    assert VALIDATORS["im"](certain) == pytest.approx(math.log(CLASSES))
    assert VALIDATORS["bnm"](certain) == pytest.approx(1.0)
    assert VALIDATORS["snd"](torch.zeros(40, CLASSES)) == pytest.approx(math.log(39))


@pytest.mark.parametrize("name", VALIDATORS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_saturated_logits_of_any_dtype(name, dtype):
    assert math.isfinite(VALIDATORS[name]((1e4 * logits().sign()).to(dtype)))


@pytest.mark.parametrize("name", VALIDATORS)
def test_bad_input_is_named(name):
    with pytest.raises(ValueError, match=names("logits", (4,))):
        VALIDATORS[name](torch.zeros(4))
    with pytest.raises(ValueError, match=names("logits", torch.int64)):
        VALIDATORS[name](torch.zeros(4, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=names("logits", 1, 4)):
        VALIDATORS[name](torch.zeros(4, 2).index_fill(0, torch.tensor([2]), math.nan))


def test_snd_needs_a_neighbour():
    with pytest.raises(ValueError, match=names("logits", 2, 1)):
        VALIDATORS["snd"](torch.zeros(1, 3))

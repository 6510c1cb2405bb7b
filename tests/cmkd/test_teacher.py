"""The text teacher's cosines, gradients, and that nothing of it is trained."""

import math

import pytest
import torch

from cmkd import TextTeacher
from tests.messages import names


def embeddings(dtype=torch.float64):
    torch.manual_seed(0)
    return 3 * torch.randn(4, 5, dtype=dtype)


def loop_cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def test_logits_are_scaled_cosines():
    features = torch.randn(3, 5, dtype=torch.float64)
    logits = TextTeacher(embeddings(), scale=100.0, bias=-10.0)(features)
    expected = [[100 * loop_cosine(f, c) - 10 for c in embeddings().tolist()] for f in features.tolist()]
    torch.testing.assert_close(logits, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(TextTeacher(embeddings(), torch.tensor([100.0]))(features), logits + 10)


def test_the_gradient_reaches_the_features_and_nothing_else():
    teacher = TextTeacher(embeddings().requires_grad_(), torch.nn.Parameter(torch.tensor(2.0)))
    features = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert list(teacher.parameters()) == []
    assert torch.autograd.gradcheck(teacher, features)
    assert set(teacher.state_dict()) == {"class_embeddings", "scale", "bias"}


def test_the_embeddings_are_a_copy():
    given = torch.nn.functional.normalize(embeddings(), dim=1)
    teacher = TextTeacher(given, 1.0)
    given.zero_()
    assert teacher.class_embeddings.norm(dim=1).tolist() == pytest.approx([1.0] * 4)


def test_autocast_and_half_precision_features_are_computed_in_float32():
    teacher = TextTeacher(embeddings(torch.float32), 100.0)
    features = torch.randn(3, 5).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = teacher(features)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, teacher(features.float()))


def test_zero_and_huge_features_give_no_nan():
    features = torch.tensor([[0.0] * 5, [1e18] * 5], requires_grad=True)
    logits = TextTeacher(embeddings(torch.float32), 100.0)(features)
    logits.sum().backward()
    assert logits.isfinite().all()
    assert features.grad.isfinite().all()


def test_bad_embeddings_are_named():
    with pytest.raises(ValueError, match=names("class_embeddings", (3,))):
        TextTeacher(torch.ones(3), 1.0)
    with pytest.raises(ValueError, match=names("class_embeddings", torch.int64)):
        TextTeacher(torch.ones(3, 2, dtype=torch.int64), 1.0)
    with pytest.raises(ValueError, match=names("class_embeddings", 1, 0.0)):
        TextTeacher(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), 1.0)
    with pytest.raises(ValueError, match=names("class_embeddings", 0, "nan")):
        TextTeacher(torch.tensor([[1.0, math.nan]]), 1.0)

"""PatchMix, the mixup losses and the neighbours' labels against loops."""

import math

import pytest
import torch
from torch import nn

from cmkd.baselines import PMTrans, neighbour_labels, pmtrans
from cmkd.baselines.patch_mix import PatchShares, feature_mixup_loss, label_mixup_loss, label_shares, mix_patches
from tests.cmkd.baselines.problem import Problem, vit_student
from tests.messages import names


def test_mixed_images_are_mixed_patch_embeddings():
    torch.manual_seed(0)
    source, target, shares = torch.randn(2, 3, 16, 24), torch.randn(2, 3, 16, 24), torch.rand(2, 6)
    embed = nn.Sequential(nn.Conv2d(3, 5, 8, stride=8), nn.Flatten(2))
    expected = shares[:, None] * embed(source) + (1 - shares[:, None]) * embed(target)
    torch.testing.assert_close(embed(mix_patches(source, target, shares, (8, 8))), expected)


def test_label_shares_are_the_loop_s():
    torch.manual_seed(0)
    shares, a, b = torch.rand(3, 4), torch.rand(3, 4).softmax(1), torch.rand(3, 4).softmax(1)
    for i, got in enumerate(label_shares(shares, a, b).tolist()):
        source = sum(shares[i, k] * a[i, k] for k in range(4)).item()
        target = sum((1 - shares[i, k]) * b[i, k] for k in range(4)).item()
        assert got == pytest.approx(source / (source + target), rel=1e-5)


def cosine_log_softmax(row, others):
    def cosine(x, y):
        return sum(a * b for a, b in zip(x, y, strict=True)) / math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))

    scores = [cosine(row, other) for other in others]
    return [score - math.log(sum(math.exp(s) for s in scores)) for score in scores]


def test_feature_mixup_is_the_loop_s():
    torch.manual_seed(0)
    mixed, source, target = (torch.randn(4, 3) for _ in range(3))
    labels, share = torch.tensor([0, 1, 0, 2]), torch.rand(4)
    total = 0.0
    for i in range(4):
        to_source = cosine_log_softmax(mixed[i].tolist(), source.tolist())
        to_target = cosine_log_softmax(mixed[i].tolist(), target.tolist())
        same = -sum(to_source[j] for j in range(4) if labels[i] == labels[j])
        total += share[i].item() * same + (1 - share[i].item()) * -to_target[i]
    assert feature_mixup_loss(mixed, source, target, labels, share).item() == pytest.approx(total / 4, rel=1e-5)


def test_label_mixup_is_the_loop_s():
    torch.manual_seed(0)
    logits, share, confidence = torch.randn(4, 3), torch.rand(4), torch.rand(4)
    ys, yt = torch.tensor([0, 1, 2, 0]), torch.tensor([1, 1, 0, 2])
    p, s, w = logits.softmax(1).tolist(), share.tolist(), confidence.tolist()
    source = sum(s[i] * -math.log(p[i][ys[i]]) for i in range(4)) / 4
    weights = [w[i] * (1 - s[i]) for i in range(4)]
    mean = sum(weights[i] * -math.log(p[i][yt[i]]) for i in range(4)) / sum(weights)
    expected = source + mean * sum(1 - x for x in s) / 4
    assert label_mixup_loss(logits, ys, yt, share, confidence).item() == pytest.approx(expected, rel=1e-5)
    equal = label_mixup_loss(logits, ys, yt, share, torch.full((4,), 0.3))
    plain = source + sum((1 - s[i]) * -math.log(p[i][yt[i]]) for i in range(4)) / 4
    assert equal.item() == pytest.approx(plain, rel=1e-5)


def loop_neighbour_labels(features, probabilities, neighbours):
    n, classes = len(features), len(probabilities[0])
    mass = [sum(p[c] ** 2 for p in probabilities) for c in range(classes)]
    labels, confidences = [], []
    for i in range(n):
        similarity = torch.nn.functional.cosine_similarity(torch.tensor(features[i])[None], torch.tensor(features))
        order = sorted((j for j in range(n) if j != i), key=lambda j, s=similarity: -float(s[j]))[:neighbours]
        means = [sum(probabilities[j][c] ** 2 / mass[c] for j in order) / len(order) for c in range(classes)]
        labels.append(means.index(max(means)))
        confidences.append(max(means))
    return labels, confidences


@pytest.mark.parametrize(("count", "neighbours"), [(12, 5), (12, 1), (3, 5)])
def test_neighbour_labels_are_the_loop_s_in_slices_too(count, neighbours, monkeypatch):
    monkeypatch.setattr(pmtrans, "ROWS_AT_ONCE", 5)
    torch.manual_seed(0)
    features, p = torch.randn(count, 3, dtype=torch.float64), torch.randn(count, 4, dtype=torch.float64).softmax(1)
    labels, confidences = neighbour_labels(features, p, neighbours)
    expected_labels, expected_confidences = loop_neighbour_labels(features.tolist(), p.tolist(), neighbours)
    assert labels.tolist() == expected_labels
    assert confidences.tolist() == pytest.approx(expected_confidences)
    with pytest.raises(ValueError, match=names(1)):
        neighbour_labels(features[:1], p[:1])


def test_the_shares_player_climbs_what_the_others_descend():
    torch.manual_seed(0)
    shares = PatchShares()
    assert shares(3, 4).shape == (3, 4)
    shares(2_000, 4).mean().backward()  # the mean of Beta(a, b) grows with a
    assert shares.alpha.grad < 0
    assert shares.beta.grad > 0


@pytest.mark.parametrize("kind", ["open_clip", "timm"])
def test_the_phase_is_the_sum_of_its_weighted_terms(kind):
    student, problem = vit_student(kind), Problem()
    objective = PMTrans(feature_weight=0.5, label_weight=0.25)
    objective.refresh(student, problem.target_pass())
    (phase,) = objective.phases(student, problem.batch(8, 6), iteration=0, max_iterations=1)
    terms = phase.terms
    expected = terms["classification"] + 0.5 * terms["feature_mixup"] + 0.25 * terms["label_mixup"]
    torch.testing.assert_close(phase.total, expected)
    assert PMTrans().feature_weight == pytest.approx(math.log1p(math.exp(-2)), abs=1e-3)

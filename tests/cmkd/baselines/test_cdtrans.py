"""CDTrans' pairs against loops, and its three branches."""

import pytest
import torch
from torch.nn import functional as F

from cmkd.baselines import CDTrans, two_way_pairs, vit_tokens
from cmkd.baselines.cdtrans import distillation_loss
from tests.cmkd.baselines.problem import Problem, train, vit_student
from tests.messages import names


def loop_pairs(source, target, source_labels, target_labels):
    def cosine(x, y):
        return float(F.cosine_similarity(torch.tensor(x), torch.tensor(y), dim=0))

    pairs = {(i, max(range(len(target)), key=lambda j, i=i: cosine(source[i], target[j]))) for i in range(len(source))}
    pairs |= {(max(range(len(source)), key=lambda i, j=j: cosine(source[i], target[j])), j) for j in range(len(target))}
    return sorted((i, j) for i, j in pairs if source_labels[i] == target_labels[j])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("sizes", [(6, 9), (9, 4)])
def test_pairs_are_the_loop_s(seed, sizes):
    torch.manual_seed(seed)
    arguments = [torch.randn(size, 3) for size in sizes] + [torch.randint(2, (size,)) for size in sizes]
    pairs = two_way_pairs(*arguments)
    got = list(zip(pairs.source.tolist(), pairs.target.tolist(), strict=True))
    assert got == loop_pairs(*(x.tolist() for x in arguments))


def test_no_class_in_common_gives_no_pairs():
    pairs = two_way_pairs(torch.randn(3, 2), torch.randn(4, 2), torch.zeros(3).long(), torch.ones(4).long())
    assert len(pairs.source) == len(pairs.target) == 0


def test_distillation_is_the_soft_cross_entropy_with_a_gradient_on_both_sides():
    teacher, student = (torch.randn(5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    loss = distillation_loss(teacher, student)
    torch.testing.assert_close(loss, F.cross_entropy(student, teacher.softmax(dim=1)))
    assert all(gradient.abs().sum() > 0 for gradient in torch.autograd.grad(loss, [teacher, student]))
    assert distillation_loss(teacher[:0], student[:0]).item() == 0


@pytest.mark.parametrize("kind", ["open_clip", "timm"])
def test_the_losses_are_those_of_the_branches_written_out(kind):
    student, problem, objective = vit_student(kind), Problem(), CDTrans()
    train(objective, student, problem, 15, max_iterations=15, rate=0.1)
    objective.refresh(student, problem.target_pass())
    student.eval()
    batch = problem.batch()
    (phase,) = objective.phases(student, batch, iteration=9, max_iterations=10)

    labels = objective.pseudo_labels.at(batch.target_positions)
    source_features, target_features = student.encoder(batch.source_images), student.encoder(batch.target_images)
    pairs = two_way_pairs(source_features, target_features, batch.source_labels, labels)
    assert len(pairs.source) > 2
    tokens = vit_tokens(student.encoder)
    source, target = tokens.embed(batch.source_images)[pairs.source], tokens.embed(batch.target_images)[pairs.target]
    mixed = target
    for index in range(tokens.depth):
        mixed = tokens.cross_block(index, mixed, source, target)
        source, target = tokens.block(index, source), tokens.block(index, target)
    target_logits = student.head(target_features)[pairs.target]
    pseudo = F.cross_entropy(target_logits, labels[pairs.target])
    distillation = F.cross_entropy(target_logits, student.head(tokens.finish(mixed)).softmax(dim=1))
    classification = F.cross_entropy(student.head(source_features), batch.source_labels, label_smoothing=0.1)
    expected = {"classification": classification, "pseudo": pseudo, "distillation": distillation}
    assert phase.terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(phase.terms[name], value, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(phase.total, sum(expected.values()), rtol=1e-4, atol=1e-5)


def test_the_first_share_of_the_run_is_the_source_s():
    student, problem, objective = vit_student(), Problem(), CDTrans(source_fraction=0.2)
    objective.refresh(student, problem.target_pass())
    counts = [
        len(next(objective.phases(student, problem.batch(), iteration=t, max_iterations=10)).terms) for t in range(4)
    ]
    assert counts == [1, 1, 3, 3]
    with pytest.raises(ValueError, match=names("source_fraction", -1)):
        CDTrans(source_fraction=-1)

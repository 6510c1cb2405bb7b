"""Centroid pseudo-labels against loops, and the memory that holds one number for each target image."""

import math

import pytest
import torch

from cmkd.baselines import centroid_labels
from cmkd.baselines.target_pass import TargetMemory, view_target
from tests.cmkd.baselines.problem import TARGET_SIZE, Problem, mlp_student
from tests.messages import names


def loop_cosine(x, y):
    norms = math.sqrt(sum(a * a for a in x)) * math.sqrt(sum(b * b for b in y))
    return sum(a * b for a, b in zip(x, y, strict=True)) / norms


def loop_centroid_labels(features, probabilities):
    points = [[*row, 1.0] for row in features]
    points = [[x / math.sqrt(sum(a * a for a in row)) for x in row] for row in points]
    classes = sorted({row.index(max(row)) for row in probabilities})
    dims = range(len(points[0]))

    def nearest(members):
        centroids = {
            c: [
                sum(m[c] * p[d] for m, p in zip(members, points, strict=True)) / sum(m[c] for m in members)
                for d in dims
            ]
            for c in classes
            if sum(m[c] for m in members) > 0
        }
        return [max(centroids, key=lambda c, p=p: loop_cosine(p, centroids[c])) for p in points]

    labels = nearest(probabilities)
    return nearest([[float(label == c) for c in range(len(probabilities[0]))] for label in labels])


@pytest.mark.parametrize("seed", range(5))
def test_centroid_labels_are_the_loop_s(seed):
    torch.manual_seed(seed)
    features = torch.randn(14, 3, dtype=torch.float64)
    probabilities = (2 * torch.randn(14, 4, dtype=torch.float64)).softmax(dim=1)
    assert centroid_labels(features, probabilities).tolist() == loop_centroid_labels(
        features.tolist(), probabilities.tolist()
    )


def test_centroids_correct_an_outlier_and_skip_classes_nobody_predicts():
    features = torch.tensor([[5.0, 0], [5, 0.1], [5, -0.1], [0, 5], [0.1, 5], [-0.1, 5]])
    probabilities = torch.tensor([[0.9, 0.05, 0.05]] * 2 + [[0.4, 0.55, 0.05]] + [[0.05, 0.9, 0.05]] * 3)
    assert centroid_labels(features, probabilities).tolist() == [0, 0, 0, 1, 1, 1]


def test_a_class_nobody_predicts_takes_no_sample_though_its_centroid_is_nearest():
    features = torch.tensor([[5.0, 0], [0, 5], [5, 5]])
    probabilities = torch.tensor([[0.8, 0, 0.2], [0, 0.8, 0.2], [0.41, 0.19, 0.4]])
    assert centroid_labels(features, probabilities).tolist() == [0, 1, 0]


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=names((3, 2), (4, 2))):
        centroid_labels(torch.zeros(3, 2), torch.ones(4, 2))


def test_the_memory_goes_by_position_and_keeps_its_dtype_when_loaded():
    memory, loaded = TargetMemory(), TargetMemory()
    memory.store(torch.tensor([3, 0, 2]), torch.tensor([0.3, 0.0, 0.2]))
    loaded.load_state_dict(memory.state_dict())
    torch.testing.assert_close(loaded.at(torch.tensor([2, 3, 2])), torch.tensor([0.2, 0.3, 0.2]))
    with pytest.raises(RuntimeError, match=names(1, "refresh")):
        loaded.at(torch.tensor([0, 1]))
    with pytest.raises(RuntimeError, match=names(4, "refresh")):
        loaded.at(torch.tensor([4]))
    with pytest.raises(RuntimeError, match=names("refresh")):
        TargetMemory().at(torch.tensor([0]))


def test_views_of_a_shuffled_pass_belong_to_their_positions():
    student, problem = mlp_student(), Problem()
    order = torch.randperm(TARGET_SIZE, generator=torch.Generator().manual_seed(0))
    views = view_target(student, problem.target_pass(order))
    assert torch.equal(views.positions, order)
    student.eval()
    torch.testing.assert_close(views.logits, student(problem.target_images[order]), rtol=1e-4, atol=1e-5)
    assert not views.features.requires_grad


def test_a_target_without_batches_is_refused():
    with pytest.raises(ValueError, match=names("target")):
        view_target(mlp_student(), [])


@pytest.mark.parametrize("part", [0, 1])
def test_a_sample_that_is_not_finite_labels_nobody(part):
    given = [torch.randn(6, 4), torch.full((6, 3), 1 / 3)]
    given[part][2, 1] = torch.nan
    with pytest.raises(ValueError, match=names(1, 6)):
        centroid_labels(*given)

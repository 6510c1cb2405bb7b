"""App. L pixel by pixel: pseudo-labels, alpha, the EMA teacher, and the sum of the two terms."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cmkd.segmentation import DenseCMKD, DenseStudent, EMATeacher, pixel_views
from tests.messages import names

BATCH, CLASSES, HEIGHT, WIDTH = 2, 4, 3, 5


class PixelStudent(DenseStudent):
    """1 x 1 convolutions and cross entropy."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 6, 1), nn.Conv2d(6, CLASSES, 1))
        self.double()

    def log_view(self, output, size):
        assert output.shape[-2:] == size
        return output.log_softmax(dim=1)

    def loss(self, output, labels, weights=None):
        losses = F.cross_entropy(output, labels, ignore_index=255, reduction="none")
        return (losses if weights is None else losses * weights).mean()


def make_student(seed: int) -> PixelStudent:
    torch.manual_seed(seed)
    return PixelStudent()


def images() -> torch.Tensor:
    return torch.randn(BATCH, 3, HEIGHT, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(9))


def log_views() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    logits = 2 * torch.randn(2, BATCH, CLASSES, HEIGHT, WIDTH, dtype=torch.float64)
    return logits[0].log_softmax(dim=1), logits[1].log_softmax(dim=1)


def test_views_pixel_by_pixel():
    log_teacher, log_pretrained = log_views()
    views = pixel_views(log_teacher, log_pretrained)
    disagreements = 0
    for b in range(BATCH):
        for i in range(HEIGHT):
            for j in range(WIDTH):
                p = [math.exp(x) for x in log_teacher[b, :, i, j].tolist()]
                q = [math.exp(x) for x in log_pretrained[b, :, i, j].tolist()]
                mean = [0.5 * (a + c) for a, c in zip(p, q, strict=True)]
                assert views.task[b, i, j] == p.index(max(p))
                assert views.distill[b, i, j] == mean.index(max(mean))
                divergence = sum(a * math.log(a / c) for a, c in zip(p, q, strict=True))
                assert views.alpha[b, i, j].item() == pytest.approx(math.exp(-divergence), rel=1e-12)
                disagreements += int(views.task[b, i, j] != views.distill[b, i, j])
    assert disagreements > 0  # else the two labels could be swapped


def test_views_refuse_other_shapes():
    log_teacher, log_pretrained = log_views()
    with pytest.raises(ValueError, match=names("log_pretrained", (2, 4, 3, 4))):
        pixel_views(log_teacher, log_pretrained[..., :4])
    with pytest.raises(ValueError, match=names("(B, C, H, W)")):
        pixel_views(log_teacher[0], log_pretrained[0])


@pytest.mark.parametrize("warm_up", [False, True])
def test_the_teacher_is_the_weighted_sum_of_all_students(warm_up):
    students = [make_student(seed) for seed in range(5)]
    teacher = EMATeacher(students[0], 0.9, warm_up=warm_up)
    expected = {name: weight.clone() for name, weight in students[0].named_parameters()}
    for update, student in enumerate(students[1:]):
        teacher.update(student)
        m = min(0.9, 1 - 1 / (update + 1)) if warm_up else 0.9
        for name, weight in student.named_parameters():
            expected[name] = m * expected[name] + (1 - m) * weight.detach()
    for name, weight in teacher.model.named_parameters():
        torch.testing.assert_close(weight, expected[name], rtol=1e-12, atol=1e-14)
        assert not weight.requires_grad


def test_the_teacher_s_state_goes_on():
    first, second = make_student(0), make_student(1)
    straight = EMATeacher(first, 0.99, warm_up=True)
    straight.update(second)
    resumed = EMATeacher(second, 0.99, warm_up=True)
    resumed.load_state_dict(straight.state_dict())
    for teacher in (straight, resumed):
        teacher.update(first)
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_teacher_copies_buffers_and_stays_in_eval_mode():
    student = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    teacher = EMATeacher(student, 0.5)
    student.train()(torch.randn(4, 3, 2, 2) + 3)
    teacher.train()
    teacher.update(student)
    assert torch.equal(teacher.model[1].running_mean, student[1].running_mean)
    assert not teacher.model[1].training
    assert not teacher(torch.randn(1, 3, 2, 2)).requires_grad


def test_another_architecture_is_named():
    teacher = EMATeacher(nn.Linear(2, 3))
    with pytest.raises(ValueError, match=names("bias")):
        teacher.update(nn.Linear(2, 4))
    with pytest.raises(ValueError, match=names("momentum", 1.5)):
        EMATeacher(nn.Linear(2, 3), 1.5)


def test_cmkd_reads_the_teacher_s_features_with_both_heads():
    student, moved = make_student(0), make_student(1)
    cmkd = DenseCMKD(student, momentum=0.75)
    head = {name: weight.clone() for name, weight in student.head.named_parameters()}
    cmkd.update(moved)
    assert all(weight.requires_grad for weight in student.parameters())
    with torch.no_grad():
        student.head.weight.zero_()  # training goes on in place; the pretrained head stays
    x = images()
    teacher = make_student(0)
    for weight, a, b in zip(teacher.parameters(), make_student(0).parameters(), moved.parameters(), strict=True):
        weight.data = 0.75 * a.data + 0.25 * b.data
    features = teacher.encoder(x)
    expected = pixel_views(
        teacher.head(features).log_softmax(dim=1),
        F.conv2d(features, head["weight"], head["bias"]).log_softmax(dim=1),
    )
    got = cmkd.views(x)
    assert torch.equal(got.task, expected.task)
    assert torch.equal(got.distill, expected.distill)
    torch.testing.assert_close(got.alpha, expected.alpha, rtol=1e-10, atol=0)
    assert got.alpha.min() < 0.999  # the heads differ, else nothing is tested


def test_the_loss_written_out():
    """lambda * ramp * mean over pixels of alpha * CE(task) + (1 - alpha) * CE(distill), and its gradient."""
    student = make_student(2)
    cmkd = DenseCMKD(make_student(0), weight=0.25, max_iterations=100)
    cmkd.update(make_student(1))
    x = images()
    views = cmkd.views(x)
    output = student.head(student.encoder(x))
    terms = cmkd(lambda labels, weights: student.loss(output, labels, weights), views, iteration=70)

    log_p = output.log_softmax(dim=1)
    picked = [-log_p.gather(1, labels[:, None])[:, 0] for labels in (views.task, views.distill)]
    ramp = 2 / (1 + math.exp(-0.7)) - 1
    expected = 0.25 * ramp * (views.alpha * picked[0] + (1 - views.alpha) * picked[1]).mean()
    torch.testing.assert_close(terms.total, expected, rtol=1e-12, atol=0)
    got = torch.autograd.grad(terms.total, list(student.parameters()), retain_graph=True)
    want = torch.autograd.grad(expected, list(student.parameters()))
    for gradient, reference in zip(got, want, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-10, atol=1e-14)


def test_nothing_of_cmkd_is_trained():
    cmkd = DenseCMKD(make_student(0))
    assert not any(weight.requires_grad for weight in cmkd.parameters())
    cmkd.train()
    assert not any(module.training for module in cmkd.modules())
    with pytest.raises(ValueError, match=names("max_iterations", 0)):
        DenseCMKD(make_student(0), max_iterations=0)


def test_images_give_log_probabilities():
    view = make_student(0)(images())
    torch.testing.assert_close(view.exp().sum(dim=1), torch.ones(BATCH, HEIGHT, WIDTH, dtype=torch.float64))

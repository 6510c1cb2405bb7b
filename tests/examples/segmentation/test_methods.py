"""The pieces of DACS, FDA and self-training, each against its definition."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from cmkd.segmentation import DenseStudent
from examples.segmentation.class_mix import disturb, draw_masks, paste
from examples.segmentation.deeplab import DeepLabV2, DilatedHead
from examples.segmentation.distillation import Distillation
from examples.segmentation.fourier import FourierAdaptation, robust_entropy, swap_low_frequencies
from examples.segmentation.scene_batches import SceneBatch
from examples.segmentation.scene_objective import SourceOnly
from examples.segmentation.self_training import SelfTraining


def labels_of(*images):
    return torch.tensor(images)


def small_student(seed=0):
    torch.manual_seed(seed)
    return DeepLabV2(nn.Conv2d(3, 8, 3, stride=2, padding=1), DilatedHead(8, 5, dilations=(1, 2)))


def small_batch():
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(2, 2, 3, 16, 16, generator=generator)
    labels = torch.randint(0, 5, (2, 16, 16), generator=generator)
    labels[0, :4] = 255
    return SceneBatch(images[0], labels, images[1], seed="7/0")


def test_masks_are_whole_classes_and_half_of_the_batchs():
    labels = labels_of([[0, 1, 2], [3, 255, 0]], [[4, 4, 4], [4, 4, 4]])
    numbers, seconds = set(), set()
    for seed in range(20):
        masks = draw_masks(labels, random.Random(seed))
        chosen = set(labels[0][masks[0]].tolist())
        numbers.add(len(chosen))
        assert 255 not in chosen
        assert torch.equal(masks[0], torch.isin(labels[0], torch.tensor(sorted(chosen))))
        seconds.add((bool(masks[1].any()), bool(masks[1].all())))
    assert numbers == {2, 3}  # three of the batch's five: with class 4, which the image lacks, or without it
    assert seconds == {(True, True), (False, False)}  # of one class: all of it or nothing


def test_paste_takes_the_source_inside():
    masks = torch.tensor([[[True, False]]])
    source, target = torch.ones(1, 3, 1, 2), torch.zeros(1, 3, 1, 2)
    assert paste(masks, source, target)[0, :, 0].tolist() == [[1, 0]] * 3
    assert paste(masks, torch.tensor([[[5, 6]]]), torch.tensor([[[7, 8]]])).tolist() == [[[5, 8]]]


def test_disturbed_images_change_and_follow_the_seed():
    images = small_batch().target_images
    once, again = disturb(images, random.Random(1)), disturb(images, random.Random(1))
    assert torch.equal(once, again)
    assert not torch.equal(once, disturb(images, random.Random(2)))
    assert once.shape == images.shape


def test_fourier_swap_against_numpy():
    generator = torch.Generator().manual_seed(0)
    source, target = torch.rand(2, 1, 3, 12, 10, dtype=torch.float64, generator=generator)
    got = swap_low_frequencies(source, target, beta=0.25)[0]
    for channel in range(3):
        spectrum = np.fft.fftshift(np.fft.fft2(source[0, channel].numpy()))
        other = np.fft.fftshift(np.fft.fft2(target[0, channel].numpy()))
        for row in range(12):
            for column in range(10):
                if abs(row - 6) <= 2 and abs(column - 5) <= 2:  # int(0.25 * 10) = 2
                    phase = spectrum[row, column] / abs(spectrum[row, column])
                    spectrum[row, column] = abs(other[row, column]) * phase
        expected = np.fft.ifft2(np.fft.ifftshift(spectrum)).real
        np.testing.assert_allclose(got[channel].numpy(), expected, atol=1e-12)


def test_fourier_swap_of_a_picture_with_itself_is_the_picture():
    picture = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(swap_low_frequencies(picture, picture, 0.3), picture)


def test_robust_entropy():
    certain = torch.tensor([1.0, 0.0, 0.0]).clamp(min=1e-30).log().reshape(1, 3, 1, 1)
    uniform = torch.full((1, 3, 1, 1), 1 / 3).log()
    assert robust_entropy(certain).item() < 1e-9
    assert robust_entropy(uniform).item() == pytest.approx((1 + 1e-6) ** 2, rel=1e-5)


def test_deeplab_s_loss_written_out():
    student = small_student().double()
    batch = small_batch()
    output = student.head(student.encoder(batch.source_images.double()))
    labels = batch.source_labels
    weights = torch.rand(labels.shape, dtype=torch.float64)
    log_p = student.log_view(output, (16, 16))
    torch.testing.assert_close(log_p.exp().sum(dim=1), torch.ones(2, 16, 16, dtype=torch.float64))
    total = 0.0
    for b in range(2):
        for i in range(16):
            for j in range(16):
                if labels[b, i, j] != 255:
                    total -= (weights[b, i, j] * log_p[b, labels[b, i, j], i, j]).item()
    assert student.loss(output, labels, weights).item() == pytest.approx(total / labels.numel())


class FixedTeacher(nn.Module):
    """Says the same of every batch."""

    def __init__(self, log_p):
        super().__init__()
        self.log_p = log_p

    def forward(self, images):
        return self.log_p


def test_pseudo_labels_weigh_as_much_as_the_teacher_is_sure():
    objective = SelfTraining(small_student(), momentum=0.9, pseudo_threshold=0.9, ignore_rows=(1, 2))
    p = torch.full((1, 2, 8, 4), 0.5)
    p[0, :, :, 0] = torch.tensor([0.05, 0.95])[:, None]  # a quarter of the pixels is sure
    objective.teacher = FixedTeacher(p.log())
    labels, weights = objective.label(torch.zeros(1, 3, 8, 4))
    assert (labels[0, :, 0] == 1).all()
    assert weights[0, 0].tolist() == [0] * 4
    assert weights[0, 6:].tolist() == [[0] * 4] * 2
    assert weights[0, 1:6].unique().tolist() == [0.25]


def test_self_training_s_mixed_loss():
    """A teacher that is never sure leaves only the pasted source in the mixed loss."""
    student, batch = small_student(), small_batch()
    unsure = SelfTraining(student, momentum=0.9, pseudo_threshold=1.1, ignore_rows=(0, 0))
    chance = random.Random(f"{batch.seed}/mix")
    masks = draw_masks(batch.source_labels, chance)
    images = disturb(paste(masks, batch.source_images, batch.target_images), chance)
    expected = student.loss(student.head(student.encoder(images)), batch.source_labels, masks.float())
    losses = unsure.losses(student, batch, iteration=0)
    torch.testing.assert_close(losses["mixed"], expected)
    torch.testing.assert_close(losses["source"], SourceOnly().losses(student, batch, iteration=0)["source"])
    sure = SelfTraining(student, momentum=0.9, pseudo_threshold=0.0, ignore_rows=(0, 0))
    assert sure.losses(student, batch, iteration=0)["mixed"] > expected


def test_the_teacher_follows_after_the_step():
    student, batch = small_student(), small_batch()
    objective = SelfTraining(student, momentum=0.5, pseudo_threshold=0.5, ignore_rows=(0, 0))
    before = objective.teacher(batch.target_images)
    with torch.no_grad():
        student.head.branches[0].weight += 1
    objective.after_step(student)
    assert not torch.equal(objective.teacher(batch.target_images), before)


def test_cmkd_s_objective_weighs_its_parts():
    student, batch = small_student(), small_batch()

    def losses(iteration, **changes):
        arguments = {"momentum": 0.9, "source_weight": 0.1, "cmkd_weight": 0.25, "ramp_iterations": 10, **changes}
        return Distillation(student, **arguments).losses(student, batch, iteration=iteration)

    source = SourceOnly().losses(student, batch, iteration=0)["source"]
    torch.testing.assert_close(losses(5)["source"], 0.1 * source)
    assert losses(0)["cmkd"] == 0
    torch.testing.assert_close(2 * losses(5)["cmkd"], losses(5, cmkd_weight=0.5)["cmkd"])
    # Fresh copies: both heads agree, alpha is 1, and the term is the loss on the teacher's labels, pasted.
    views = student(batch.target_images).argmax(dim=1)
    chance = random.Random(f"{batch.seed}/mix")
    masks = draw_masks(batch.source_labels, chance)
    images = disturb(paste(masks, batch.source_images, batch.target_images), chance)
    expected = student.loss(student.head(student.encoder(images)), paste(masks, batch.source_labels, views))
    ramp = 2 / (1 + np.exp(-0.5)) - 1
    torch.testing.assert_close(losses(5)["cmkd"], 0.25 * ramp * expected, rtol=1e-4, atol=0)


def test_fda_trains_on_the_restyled_source():
    student, batch = small_student(), small_batch()
    losses = FourierAdaptation(beta=0.1, entropy_weight=0.5).losses(student, batch, iteration=0)
    assert losses["source"] != SourceOnly().losses(student, batch, iteration=0)["source"]
    torch.testing.assert_close(losses["entropy"], 0.5 * robust_entropy(student(batch.target_images)))


def test_a_dense_student_is_a_student():
    assert isinstance(small_student(), DenseStudent)

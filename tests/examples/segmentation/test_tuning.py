"""Which weights a row trains."""

import copy

import pytest
import torch
from torch import nn

from examples.segmentation.deeplab import DeepLabV2, DilatedHead
from examples.segmentation.tuning import TUNINGS, count_trained, prepare


def make_student():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1))
    return DeepLabV2(encoder, DilatedHead(8, 5))


EXPECTED = {
    "full": 3 * 8 * 9 + 16 + 8 * 8 + 8,
    "rst": 3 * 8 * 9 + 16 + 8 * 8 + 8,
    "linear_probe": 0,
    "bitfit": 8 + 8,
    "lora": 2 * (3 * 9 + 8) + 2 * (8 + 8),
}
HEAD = 2 * (8 * 9 * 5 + 5)


@pytest.mark.parametrize("tuning", TUNINGS)
def test_what_trains(tuning):
    student = make_student()
    prepare(student, tuning, lora_rank=2)
    assert count_trained(student) == EXPECTED[tuning] + HEAD
    assert all(weight.requires_grad for weight in student.head.parameters())
    student.train()(torch.randn(2, 3, 8, 8) + 5)
    assert student.encoder[1].running_mean.abs().sum() == 0  # the statistics are frozen in every row


def test_lora_follows_dilation():
    """A low-rank update of a dilated convolution is a change of its weight."""
    torch.manual_seed(0)
    student = DeepLabV2(nn.Sequential(nn.Conv2d(3, 6, 3, padding=2, dilation=2)), DilatedHead(6, 5))
    prepare(student, "lora", lora_rank=2)
    layer, images = student.encoder[0], torch.randn(1, 3, 9, 9)
    up, down = layer.lora_B["default"].weight, layer.lora_A["default"].weight
    nn.init.normal_(up)
    changed = copy.deepcopy(layer.get_base_layer())
    changed.weight.data += torch.einsum("or,rikl->oikl", up[:, :, 0, 0], down).detach()
    torch.testing.assert_close(layer(images), changed(images), rtol=1e-4, atol=1e-5)


def test_lora_starts_where_the_network_is():
    plain, low_rank = make_student(), make_student()
    prepare(low_rank, "lora", lora_rank=2)
    images = torch.randn(1, 3, 8, 8)
    assert torch.equal(plain.eval()(images), low_rank.eval()(images))

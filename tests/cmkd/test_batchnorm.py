"""What a frozen BatchNorm still does, and what no call of train() wakes."""

import copy

import pytest
import torch
from torch import nn

from cmkd import freeze_batchnorm


def encoder() -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16)))
    return network.append(nn.Dropout(0.5))


def statistics(network: nn.Module):
    return {name: value.clone() for name, value in network.named_buffers()}


@pytest.mark.parametrize("affine", [False, True])
def test_statistics_stand_still_whatever_the_loop_calls(affine):
    network = encoder()
    before = statistics(network)
    freeze_batchnorm(network, affine=affine)
    network.train()
    network(torch.randn(5, 3, 2, 2))
    nn.Sequential(network).train()(torch.randn(5, 3, 2, 2))
    assert all(torch.equal(value, before[name]) for name, value in statistics(network).items())
    assert network[-1].training  # the rest trains on


def test_one_image_s_features_do_not_depend_on_the_others():
    network = encoder()[:3]
    freeze_batchnorm(network, affine=False)
    images = torch.randn(5, 3, 2, 2)
    torch.testing.assert_close(network.train()(images)[:1], network(images[:1]))


@pytest.mark.parametrize("affine", [False, True])
def test_affine_weights(affine):
    network = encoder()
    freeze_batchnorm(network, affine=affine)
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    norms = {"1.weight", "1.bias", "2.1.weight", "2.1.bias"}
    assert trained == {"0.weight", "0.bias"} | (set() if affine else norms)


def test_copies_are_frozen_too():
    network = encoder()
    freeze_batchnorm(network, affine=False)
    twin = copy.deepcopy(network).train()
    before = statistics(twin)
    twin(torch.randn(5, 3, 2, 2))
    assert all(torch.equal(value, before[name]) for name, value in statistics(twin).items())


def test_without_it_they_move():
    network = encoder().train()
    before = statistics(network)
    network(torch.randn(5, 3, 2, 2))
    assert not torch.equal(network[1].running_mean, before["1.running_mean"])

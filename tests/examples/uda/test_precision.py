"""The warning of a learning rate that float32 rounds away."""

import warnings

import pytest
import torch
from torch import nn

from examples.uda.precision import share_of_lost_steps, warn_of_lost_steps
from tests.messages import names


def stepped(lr, *, dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Linear(100, 100, bias=False, dtype=dtype)
    nn.init.normal_(model.weight, std=0.05)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    model.weight.grad = torch.randn(100, 100).to(dtype)
    before = model.weight.detach().clone()
    optimizer.step()
    return model, optimizer, (model.weight == before).float().mean().item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_paper_s_smallest_rate_is_lost_in_float32_only(dtype):
    model, optimizer, unmoved = stepped(1e-9, dtype=dtype)
    assert share_of_lost_steps(optimizer, model) == (dtype == torch.float32)
    assert (unmoved > 0.5) == (dtype == torch.float32)


def test_a_lost_step_is_warned_of():
    model, optimizer, _ = stepped(1e-9)
    with pytest.warns(UserWarning, match=names("1e-09", "100%")):
        warn_of_lost_steps(optimizer, model)
    model, optimizer, unmoved = stepped(1e-6)
    assert unmoved < 0.01
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_lost_steps(optimizer, model)


def test_before_the_first_step_there_is_nothing_to_say():
    model = nn.Linear(2, 2)
    assert share_of_lost_steps(torch.optim.SGD(model.parameters(), lr=1e-9), model) == 0

"""Every module comes back in its own mode."""

import pytest
from torch import nn

from cmkd import eval_mode


def test_modes_come_back_one_by_one():
    network = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2)))
    network.train()
    network[1][0].eval()
    with eval_mode(network):
        assert not any(module.training for module in network.modules())
    assert [module.training for module in network.modules()] == [True, True, True, False]


def test_also_after_an_error():
    network = nn.Linear(1, 1)
    with pytest.raises(KeyError), eval_mode(network):
        raise KeyError
    assert network.training

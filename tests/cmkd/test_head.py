"""The task head layer by layer, and its start."""

import pytest
import torch

from cmkd import PRESETS, TaskHead
from tests.messages import names


def test_is_batchnorm_layernorm_linear():
    head = TaskHead(6, 3, layer_norm_eps=0.5).double()
    x = torch.randn(8, 6, dtype=torch.float64)
    normal = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
    row_mean, row_var = normal.mean(1, keepdim=True), normal.var(1, unbiased=False, keepdim=True)
    expected = (normal - row_mean) / (row_var + 0.5).sqrt() @ head.linear.weight.T + head.linear.bias
    torch.testing.assert_close(head(x), expected)


def test_starts_small_with_the_batchnorm_s_bias_fixed_at_zero():
    head = TaskHead(512, 65, generator=torch.Generator().manual_seed(0))
    assert head.linear.weight.std().item() == pytest.approx(0.001, rel=0.02)
    assert abs(head.linear.weight.mean().item()) < 2e-5
    assert not head.linear.bias.any()
    assert not head.batch_norm.bias.any()
    assert (head.batch_norm.weight == 1).all()
    frozen = [name for name, parameter in head.named_parameters() if not parameter.requires_grad]
    assert frozen == ["batch_norm.bias"]


def test_a_generator_makes_it_repeatable_and_leaves_the_global_one_alone():
    state = torch.get_rng_state()
    heads = [TaskHead(4, 2, generator=torch.Generator().manual_seed(7)) for _ in range(2)]
    assert torch.equal(heads[0].linear.weight, heads[1].linear.weight)
    torch.set_rng_state(state)
    assert not torch.equal(TaskHead(4, 2).linear.weight, heads[0].linear.weight)


@pytest.mark.parametrize(("name", "parameters"), [("paper", 4 * 8 + 8 * 3 + 3), ("official", 4 * 8 + 8 * 3)])
def test_the_presets_heads(name, parameters):
    preset = PRESETS[name]
    head = TaskHead(8, 3, linear_bias=preset.head_linear_bias, layer_norm_eps=preset.head_layer_norm_eps)
    assert sum(parameter.numel() for parameter in head.parameters()) == parameters
    assert head.layer_norm.eps == preset.head_layer_norm_eps


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match=names("dim=8", "classes=0")):
        TaskHead(8, 0)

"""Table X's parameter counts, from the architecture and from what a run saves."""

import pytest
import torch
from torch import nn

from examples.experiment.settings import SettingsError
from examples.optical_flow.methods import prepare
from examples.optical_flow.networks import freeze_statistics, load_network
from examples.optical_flow.settings import Settings
from examples.optical_flow.storage import count_from_architecture, store, trained
from tests.messages import names


def tiny(**changes):
    return Settings(**{"method": "rst", "architecture": "raft_tiny", "steps": 4, **changes})


def moved(network, before):
    """Names of the parameters that changed."""
    return {name for name, weight in network.named_parameters() if not torch.equal(weight, before[name])}


def one_step(network, trainer):
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(trained(network).values(), lr=0.1)
    if trainer is not None:
        trainer.attach(optimizer)
    first, second = torch.rand(2, 1, 3, 32, 32)
    sum(flow.abs().sum() for flow in network(first, second, num_flow_updates=2)).backward()
    optimizer.step()


# Table X has 4.1878, 3.1210, 0.0043 and 0.0043 M; the context encoder's 1,069,728 weights (3,136 biases) are not in it
@pytest.mark.parametrize(
    ("method", "like_paper", "all_"),
    [
        ("fine_tuning", 4_187_808, 5_257_536),
        ("linear_probe", 3_120_960, 3_120_960),
        ("bitfit", 4_320, 7_456),
        ("rst_bias", 4_320, 7_456),
        ("lora", 37_113, 49_036),
        ("rst", None, 10_515),
    ],
)
def test_table_x_is_counted_from_the_architecture(method, like_paper, all_):
    counted = count_from_architecture(Settings(method=method))
    assert (counted.dsp_like_paper, counted.dsp) == (like_paper, all_)


@pytest.mark.parametrize(
    ("method", "belongs"),
    [
        ("linear_probe", lambda name: name.startswith(("update_block.", "mask_predictor."))),
        ("bitfit", lambda name: name.endswith(".bias")),
        ("rst_bias", lambda name: name.endswith(".bias")),
        ("lora", lambda name: ".lora_" in name),
    ],
)
def test_only_what_a_method_trains_moves(method, belongs, tmp_path):
    network = load_network("raft_tiny", None)
    trainer = prepare(network, tiny(method=method))
    before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    one_step(network, trainer)
    changed = moved(network, before)
    assert changed
    assert all(belongs(name) for name in changed)
    stored = store(network, trainer, tmp_path / "file.safetensors")
    assert stored.dsp <= count_from_architecture(tiny(method=method)).dsp


def test_rst_bias_has_gradients_of_all_weights_to_clip_and_bitfit_has_not():
    for method, expected in (("rst_bias", True), ("bitfit", False)):
        network = load_network("raft_tiny", None)
        prepare(network, tiny(method=method))
        assert (len(trained(network)) == len(list(network.parameters()))) is expected


def test_top_r_ends_with_the_share_of_the_settings(tmp_path):
    network = load_network("raft_tiny", None)
    trainer = prepare(network, tiny(steps=1, final_share=0.01))
    one_step(network, trainer)
    weights = sum(weight.numel() for weight in network.parameters())
    stored = store(network, trainer, tmp_path / "delta.safetensors")
    assert stored.dsp == trainer.count_changed() == round(0.01 * weights)
    assert 0 < stored.dsp_like_paper < stored.dsp


def test_batchnorm_keeps_its_statistics_in_training():
    network = freeze_statistics(load_network("raft_tiny", None).train())
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms]
    network(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32), num_flow_updates=1)
    assert norms
    assert all(torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, before, strict=True))


def test_unknown_weights_are_refused():
    with pytest.raises(SettingsError, match=names("C_T_SKHT_V2", "'mixed'")):
        load_network("raft_large", "mixed")
    with pytest.raises(SettingsError, match=names("pretrained")):
        load_network("raft_tiny", "C_T_V2")

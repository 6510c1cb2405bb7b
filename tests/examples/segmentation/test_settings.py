"""Settings: the tables load, what cannot run is refused by name, and how far AdamW moves a weight."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from examples.experiment.settings import SettingsError
from examples.segmentation.settings import Settings, largest_step
from examples.segmentation.tables import load_table, table_names
from rst import Linear, ResidualSparseTrainer, RSTConfig
from tests.messages import names

ROW = load_table("gta_cityscapes").rows["RST-config1"]


def test_tables_hold_the_paper_s_settings():
    assert table_names() == ["cityscapes_acdc", "gta_cityscapes"]
    table = load_table("gta_cityscapes")
    assert table.rows.keys() == table.paper.keys()
    assert [table.paper[row]["miou"] for row in table.rows] == [56.0, 18.4, 28.3, 45.5, 53.1, 56.7]
    assert table.rows["RST-config1"].threshold == (5e-4, 3.5e-2)
    assert table.rows["RST-config2"].threshold == (5e-4, 2e-2)
    assert {(s.encoder_lr, s.head_lr, s.iterations, s.crop) for s in table.rows.values()} == {(6e-5, 6e-4, 40_000, 512)}
    acdc = load_table("cityscapes_acdc")
    assert acdc.rows.keys() == acdc.paper.keys()
    row = acdc.rows["CMKD+RST"]
    assert (row.threshold, row.ema_momentum, row.source_weight, row.sparse_head) == ((2e-6, 1e-4), 0.99, 0.1, True)
    assert all(len(paper["per_class"]) == 19 for t in (table, acdc) for paper in t.paper.values())


@pytest.mark.parametrize("name", table_names())
def test_settings_survive_json(name):
    for settings in load_table(name).rows.values():
        assert Settings.from_dict(settings.to_dict()) == settings
        assert replace(settings, crop=256).fingerprint() != settings.fingerprint()


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"encoder_lr": "6e-5"}, ("encoder_lr", "float", "'6e-5'", "6.0e-5")),
        ({"threshold": 1e-3}, ("threshold", 2, 0.001)),
        ({"source_size": (1280, 7.5)}, ("source_size", "int", 7.5)),
        ({"tuning": "lorra"}, ("tuning", "full", "'lorra'")),
        ({"source": "gta"}, ("source", "gta5", "'gta'")),
        ({"crop": 720, "target_size": (1024, 512)}, ("target_size", 720)),
        ({"iterations": 0}, ("iterations", 1, 0)),
        ({"head_lr": -1.0}, ("head_lr", -1.0)),
        ({"method": "cmkd"}, ("'cmkd'",)),
        ({"project_every": 1}, ("threshold", 0.0005, "encoder_lr 6e-05")),
    ],
)
def test_misuse_is_named(change, facts):
    with pytest.raises(SettingsError, match=names(*facts)):
        replace(ROW, **change)


def test_unknown_and_missing_keys_are_named():
    with pytest.raises(SettingsError, match=names("'tau'")):
        Settings.from_dict({**ROW.to_dict(), "tau": 1})
    with pytest.raises(SettingsError, match="'target_size'"):
        Settings.from_dict({key: value for key, value in ROW.to_dict().items() if key != "target_size"})
    with pytest.raises(SettingsError, match=names("cityscapes_acdc", "gta_cityscapes", "'gta'")):
        load_table("gta")


def longest_step(gradients):
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.AdamW([weight], lr=6e-5, weight_decay=0.01)
    longest = 0.0
    for gradient in gradients:
        before = weight.detach().clone()
        weight.grad = torch.full_like(weight, gradient)
        optimizer.step()
        longest = max(longest, (weight.detach() - before).abs().item())
    return longest


def test_adamw_stays_within_the_largest_step():
    after_silence = longest_step([1e-12] * 3_000 + [1.0])
    assert after_silence == pytest.approx(largest_step(6e-5), rel=0.03)
    assert after_silence < largest_step(6e-5)
    torch.manual_seed(0)
    assert longest_step(torch.randn(500).tolist()) < largest_step(6e-5)
    assert largest_step(6e-5) < 5e-4  # the smallest tau of App. J


def test_projecting_after_every_step_with_the_paper_s_threshold_keeps_nothing():
    """Why `project_every` is not 1: App. J's tau cannot be passed in one step at its learning rate."""
    kept = {}
    for every in (1, 20):
        torch.manual_seed(0)
        model = nn.Linear(20, 20)
        optimizer = torch.optim.AdamW(model.parameters(), lr=6e-5, weight_decay=0.01)
        trainer = ResidualSparseTrainer(model, RSTConfig(threshold=Linear(5e-4, 1e-3), every=every, total_steps=40))
        trainer.attach(optimizer)
        for _ in range(40):
            optimizer.zero_grad()
            (model(torch.randn(8, 20)) - 1).square().mean().backward()
            optimizer.step()
        kept[every] = trainer.count_changed()
    assert kept[1] == 0
    assert kept[20] > 0

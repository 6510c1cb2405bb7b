"""What the report's charts and tables are made of: blocks, bins, tau, and sizes that are computed."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rst import SparseDelta, export, open_checkpoint
from rst.report.chart import percent, round_steps
from rst.report.density_by_depth import Block, stacks
from rst.report.density_by_layer import bar_share, layer_chart, lowest_decade
from rst.report.residual_histogram import histogram_chart, is_drawn, residual_histogram
from rst.report.sizes import sizes
from rst.report.tensors import TensorRecord, tensor_records
from rst.report.threshold import threshold_of


def record(name: str, changed: int = 1, of: int = 10, kind: str = "sparse") -> TensorRecord:
    return TensorRecord(name, kind, (of,), "float32", changed, of, changed / of, 0, 8 * changed)  # type: ignore[arg-type]


def test_blocks_are_told_by_the_first_number_and_sorted_by_it() -> None:
    names = [f"visual.layers.{block}.{part}" for block in (10, 2, 0) for part in ("attn.0.weight", "mlp.weight")]
    found = stacks(
        [record(name, changed=3) for name in names]
        + [record("visual.layers.2.norm.weight", 0, 20, "unchanged"), record("visual.layers.2.head", 10, kind="whole")]
        + [
            record("0.weight"),
            record("1.weight"),
            record("alone.7.weight"),
            record("layer1.weight"),
            record("v2.weight"),
        ]
    )
    assert [stack.name for stack in found] == ["visual.layers", ""]
    assert found[0].blocks == [Block(0, 6, 20), Block(2, 6, 40), Block(10, 6, 20)]
    assert found[0].blocks[1].density == 0.15


def test_tensors_are_listed_once_in_the_order_of_numbers_with_those_left_alone(tmp_path: Path) -> None:
    weights = {f"blocks.{number}.w": torch.zeros(4) for number in (10, 9, 1)}
    base = {**weights, "head.w": torch.zeros(2), "count": torch.tensor(1)}
    tuned = {**base, "blocks.10.w": torch.tensor([0.0, 0, 1, 0]), "head.w": torch.ones(2), "count": torch.tensor(2)}
    tuned["new"] = torch.ones(1)
    delta = export(base, tuned, modules_to_save=["head"])
    listed = [(record.name, record.kind, record.dsp) for record in tensor_records(delta, open_checkpoint(base))]
    assert listed == [
        ("blocks.1.w", "unchanged", 0),
        ("blocks.9.w", "unchanged", 0),
        ("blocks.10.w", "sparse", 1),
        ("count", "sparse", 1),
        ("head.w", "whole", 2),
        ("new", "whole", 1),
    ]
    assert [record.name for record in tensor_records(delta)] == ["blocks.10.w", "count", "head.w", "new"]


@given(st.lists(st.floats(1e-9, 1.0), max_size=8))
def test_every_density_has_a_bar_within_the_axis(densities: list[float]) -> None:
    tensors = [
        TensorRecord(f"w{i}", "sparse", (1,), "float32", 1, 1, density, 0, 1) for i, density in enumerate(densities)
    ]
    lowest = lowest_decade(tensors)
    assert lowest <= -1
    for density in densities:
        assert 10.0**lowest < density * (1 + 1e-9)
        assert 0 <= bar_share(density, lowest) <= 1
    assert bar_share(1.0, lowest) == 1
    assert bar_share(0.0, lowest) == 0
    chart = layer_chart(tensors)
    for bar in chart.bars:
        assert chart.top - 1e-6 <= bar.y <= bar.y + bar.height <= chart.bottom + 1e-6
        assert chart.left <= bar.x <= bar.x + bar.width <= chart.right + 1e-6


@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32).filter(bool), min_size=1, max_size=30),
    st.none() | st.floats(1e-30, 1e30),
)
def test_every_residual_is_in_one_bin_of_the_histogram(residuals: list[float], tau: float | None) -> None:
    tuned = torch.tensor(residuals)
    delta = export({"w": torch.zeros_like(tuned)}, {"w": tuned})
    histogram = residual_histogram(delta, tau)
    assert sum(histogram.counts) == delta.nnz
    assert (histogram.zeros, histogram.unknown) == (0, 0)
    for left, right, count in histogram.bins:
        inside = sum(10**left * (1 - 1e-6) <= abs(number) <= 10**right * (1 + 1e-6) for number in tuned.tolist())
        assert count <= inside
    chart = histogram_chart(histogram, tau)
    assert len(chart.bars) == len(histogram.counts) <= 90
    assert len(chart.x_ticks) <= 17
    assert bool(chart.rules) == is_drawn(histogram, tau)
    for tick in [*chart.x_ticks, *chart.rules]:
        assert chart.left - 1e-3 <= tick.at <= chart.right + 1e-3


def test_tau_next_to_the_residuals_is_on_the_axis_and_a_distant_one_is_not() -> None:
    delta = export({"w": torch.zeros(2)}, {"w": torch.tensor([2e-3, 5e-3])})
    for tau, drawn in ((1e-3, True), (2e-5, True), (1e-30, False), (5.0, True), (1e9, False), (0.0, False)):
        assert is_drawn(residual_histogram(delta, tau), tau) is drawn


def test_what_has_no_residual_is_counted_apart() -> None:
    base = {"w": torch.tensor([1.0, 1e8]), "n": torch.tensor([1, 2]), "z": torch.tensor([0.0])}
    tuned = {"w": torch.tensor([math.inf, 2e8]), "n": torch.tensor([1, 3]), "z": torch.tensor([-0.0])}
    histogram = residual_histogram(export(base, tuned), None)
    assert (sum(histogram.counts), histogram.zeros, histogram.unknown) == (1, 2, 1)
    nothing = residual_histogram(export(base, tuned, op="step"), None)
    assert (nothing.counts, nothing.unknown) == ([], 4)


@pytest.mark.parametrize(
    ("config", "tau", "words"),
    [
        ({"threshold": 1e-6, "select": "threshold"}, 1e-6, "Tau is 1e-06"),
        ({"threshold": 1e-6, "select": "top", "ratio": 0.002}, None, "ratio 0.002"),
        ({"threshold": 1e-6, "select": "bias"}, None, "Biases alone"),
        ({"threshold": {"schedule": "linear", "start": 5e-4, "end": 3.5e-2}}, 3.5e-2, "from 0.0005 to 0.035"),
        ({"threshold": {"schedule": "constant", "value": 1e-5}}, 1e-5, "constant at 1e-05"),
        ({"threshold": {"schedule": "custom", "name": "f"}}, None, "a schedule that the file does not define"),
        ({"combined": {"method": "ties"}}, None, "Several deltas"),
        ({}, None, "every changed bit"),
        ({"threshold": "<script>"}, None, "<script>"),
        ({"threshold": 10**400}, None, "schedule"),
        ({"threshold": True}, None, "True"),
        ({"threshold": -1.0}, None, "-1.0"),
        ({"threshold": math.nan}, None, "nan"),
    ],
    ids=str,
)
def test_tau_as_the_settings_tell_it(config: dict[str, object], tau: float | None, words: str) -> None:
    found = threshold_of(config)
    assert found.tau == tau
    assert words in found.text


def test_sizes_are_those_of_the_formats(tmp_path: Path) -> None:
    base = {"w": torch.zeros(10, 10), "h": torch.zeros(4, dtype=torch.float16), "left": torch.zeros(50)}
    tuned = {**base, "w": base["w"].clone(), "h": torch.ones(4).half(), "head": torch.ones(3)}
    tuned["w"][0, :5] = 1
    delta = export(base, tuned)
    files = {}
    for encoding in ("coo", "packed"):
        delta.save(tmp_path / "delta.safetensors", encoding)
        files[encoding] = (tmp_path / "delta.safetensors").stat().st_size
    found = sizes(SparseDelta.load(tmp_path / "delta.safetensors"), files["packed"], "packed", None)
    pairs, coordinates = 5 * (8 + 4) + 4 * (8 + 2) + 12, 5 * (16 + 4) + 4 * (8 + 2) + 12
    assert [size.bytes for size in found] == [
        files["packed"], files["coo"], pairs, coordinates, 100 * 4 + 4 * 2 + 50 * 4 + 12
    ]  # fmt: skip
    assert [size.is_file for size in found] == [True, False, False, False, False]
    for size in found[2:]:
        assert size.basis.startswith("computed")
    with_base = sizes(delta, files["packed"], "packed", open_checkpoint({**base, "count": torch.zeros(7)}))
    assert with_base[-1].bytes == 100 * 4 + 4 * 2 + 50 * 4 + 7 * 4 + 12


@given(st.floats(1e-12, 1e12))
def test_axes_have_few_round_steps(largest: float) -> None:
    steps = round_steps(largest)
    assert steps[0] == 0
    assert largest * 0.999 <= steps[-1] <= largest * 2.51
    assert 3 <= len(steps) <= 6


def test_shares_in_percent() -> None:
    assert [percent(share) for share in (0.0, 1.0, 0.5, 1.234e-5, 1e-9)] == [
        "0 %", "100 %", "50 %", "0.00123 %", "1.0e-07 %"
    ]  # fmt: skip


def test_an_axis_of_nothing() -> None:
    assert round_steps(0.0) == [0.0, 1.0]

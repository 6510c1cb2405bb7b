"""A slice of `make smoke`: a row of each kind, on fake data of each kind of benchmark."""

from dataclasses import replace

import pytest
from rich.console import Console

from examples.uda.smoke import smoke_table
from examples.uda.tables import variants

SLICE = [
    ("table3", "RN50", "CMKD+RST"),
    ("table5", "ViT-B-16", "CMKD+FixMatch"),
    ("table8", "ViT-B-16", "ImageNet-21K"),
    ("appendix2", "RN101", "CMKD"),
    ("appendix3", "ViT-B-16", "PMTrans (ours)"),
    ("appendix4", "RN50", "DSAN+RST"),
    ("appendix8", "RN50", "CMKD"),
    ("digits-small", "small_clip", "CMKD"),
    ("digits-source-free", "svhn_cnn", "SHOT+RST"),
    ("pacs", "prototypes", "Linear-Probe"),
]


@pytest.mark.parametrize(
    ("table", "backbone", "row"), [SLICE[0], *(pytest.param(*row, marks=pytest.mark.slow) for row in SLICE[1:])]
)
def test_a_row_runs(table, backbone, row):
    variant = next(variant for variant in variants(table) if variant.name == backbone)
    console = Console(record=True)
    smoke_table([replace(variant, rows={row: variant.rows[row]})], console)
    assert f"{table} {backbone} {row}" in console.export_text()

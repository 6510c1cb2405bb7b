"""The parameter counts of App. Tables VII and IX."""

import pytest

from examples.segmentation.parameters import counts, markdown


@pytest.fixture(scope="module")
def by_row():
    return {count.row: count for count in counts()}


def test_counts(by_row):
    assert by_row["Fine-Tuning"].ours == 42_500_160 + 700_454
    assert by_row["Linear-Probe"].ours == 2048 * 9 * 19 * 2 + 38
    assert by_row["BitFit"].ours == 700_454 + 52_672
    assert by_row["LoRA"].ours == 700_454 + 2_663_728
    assert by_row["Mask2Former, CMKD"].ours == 44_007_700


@pytest.mark.parametrize("row", ["Linear-Probe", "BitFit", "Mask2Former, CMKD"])
def test_rows_that_agree_with_the_paper(by_row, row):
    assert by_row[row].ours / 1e6 == pytest.approx(by_row[row].paper, abs=0.01)


def test_the_table_has_every_row(by_row):
    page = markdown()
    assert all(f"| {row} | {count.paper:.2f} |" in page for row, count in by_row.items())

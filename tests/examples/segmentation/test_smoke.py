"""RST rows of both tables learn on generated scenes and ship: loss falls, mIoU rises, `rst merge` is exact."""

import pytest
from rich.console import Console

from examples.segmentation.report import write_report
from examples.segmentation.smoke import smoke_table
from examples.segmentation.tables import load_table

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("smoke")


@pytest.mark.parametrize(
    ("name", "row", "rise"), [("gta_cityscapes", "RST-config1", 15), ("cityscapes_acdc", "CMKD+RST", 1)]
)
def test_a_row_learns_and_ships(name, row, rise, output):
    console, table = Console(record=True, width=200), load_table(name)
    (cell,) = smoke_table(table, output, console, rows=[row])
    curve = cell.result()["curve"]
    assert curve[-1]["miou"] > curve[0]["miou"] + rise
    assert curve[-1]["losses"]["source"] < curve[1]["losses"]["source"]
    assert curve[-1]["threshold"] == pytest.approx(cell.settings.threshold[1])
    assert 0 < curve[-1]["kept"] < curve[1]["kept"]
    assert "predictions bit-identical" in console.export_text()

    page = write_report(table, [cell], output / name, "the command", generated=True)
    assert "no\nresults on the real data sets" in page
    assert table.title not in page
    assert f"{curve[-1]['miou']:.1f}" in page
    assert "paper" not in page
    for figure in ("scores.png", "schedule.png", cell.path.with_suffix(".png").relative_to(output / name)):
        assert str(figure) in page
        assert (output / name / figure).stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "row"), [("gta_cityscapes", "BitFit"), ("gta_cityscapes", "Linear-Probe"), ("cityscapes_acdc", "FDA")]
)
def test_other_rows_run(name, row, output):
    (cell,) = smoke_table(load_table(name), output, Console(quiet=True), rows=[row])
    result = cell.result()
    assert result["dsp"] > 0
    assert result["bytes"] == cell.path.with_suffix(".safetensors").stat().st_size

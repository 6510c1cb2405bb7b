"""The report's numbers against stored results."""

import json

import pytest

from cmkd import VALIDATORS
from examples.uda.cells import cells
from examples.uda.plots import draw_curves, draw_storage
from examples.uda.report import collect, markdown
from examples.uda.tables import variants


def store(cell, last, oracle, dsp=0, per_class=None):
    """A result with only what reports read."""
    cell.path.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "fingerprint": cell.settings.fingerprint(),
        "status": "finished",
        "last": last,
        "oracle": oracle,
        "selected": {name: {"accuracy": last - 1, "iteration": 1} for name in VALIDATORS},
        "per_class": per_class or {},
        "dsp": dsp,
        "bytes": 2000,
        "hours": 0.5,
        "curve": [{"iteration": i, "accuracy": last} for i in (1, 2)],
    }
    cell.path.write_text(json.dumps(result))


def table(name, backbone, output, seeds=1):
    variant = next(variant for variant in variants(name) if variant.name == backbone)
    return variant, cells(variant, output, seeds=seeds)


def line(page, row, kind):
    found = [text for text in page.splitlines() if text.startswith(f"| {row} | {kind} |")]
    assert len(found) == 1, (row, kind)
    return [entry.strip() for entry in found[0].strip("|").split("|")][2:]


def test_tasks_averages_and_differences(tmp_path):
    variant, planned = table("table1", "RN50", tmp_path)
    for position, cell in enumerate(cell for cell in planned if cell.row == "CMKD"):
        store(cell, last=60 + position, oracle=70 + position, dsp=1_000_000)
    page = markdown(variant, collect(variant, tmp_path, 1), "the command")
    assert line(page, "CMKD", "paper")[:2] == ["65.9", "86.6"]
    assert line(page, "CMKD", "last") == [*(f"{60 + i:.1f}" for i in range(12)), "65.5", "12.000"]
    assert line(page, "CMKD", "oracle")[-2] == "75.5"
    assert line(page, "CMKD", "oracle - paper")[0] == "+4.1"
    assert line(page, "CMKD", "oracle - paper")[-2] == "-3.8"  # 75.5 - 79.3
    assert "| CMKD | 65.5 | 75.5 | 64.5 |" in page
    assert "12 of 60 cells are done" in page
    assert line(page, "BNM (imagenet1k)", "paper")[-2] == "67.9"


def test_a_row_without_all_its_cells_has_no_average(tmp_path):
    variant, planned = table("table1", "RN50", tmp_path)
    store(next(cell for cell in planned if cell.row == "CMKD"), last=60, oracle=70)
    page = markdown(variant, collect(variant, tmp_path, 1), "")
    assert line(page, "CMKD", "last") == ["60.0", *["-"] * 11, "-", "-"]


def test_seeds_are_averaged_and_their_spread_is_told(tmp_path):
    variant, planned = table("digits-small", "small_clip", tmp_path, seeds=3)
    for cell in planned:
        if cell.row == "CMKD":
            store(cell, last=80 + cell.seed - 42, oracle=90, dsp=500)
    page = markdown(variant, collect(variant, tmp_path, 3), "")
    assert line(page, "CMKD", "last") == ["81.0", "81.0", "81.0", "0.001"]
    assert "| CMKD | 81.0 ± 1.0 | 90.0 |" in page


def test_a_diverged_cell_is_told_and_leaves_its_task_without_a_mean(tmp_path):
    variant, planned = table("digits-small", "small_clip", tmp_path, seeds=3)
    row = [cell for cell in planned if cell.row == "CMKD"]
    for cell in row:
        store(cell, last=80, oracle=90)
    lost = row[-1]
    result = {"fingerprint": lost.settings.fingerprint(), "status": "diverged", "iteration": 31}
    lost.path.write_text(json.dumps(result))
    rows = collect(variant, tmp_path, 3)
    page = markdown(variant, rows, "")
    assert "-".join(lost.task) == "M-U"
    assert line(page, "CMKD", "last") == ["80.0", "diverged", "-", "-"]
    assert line(page, "CMKD", "oracle")[:2] == ["90.0", "diverged"]
    assert "- CMKD, M-U: diverged after 31 iterations" in page
    assert "6 of 80 cells are done, 1 of them diverged." in page
    draw_curves(variant.title, rows, tmp_path / "curves.png")


def test_visda_reports_classes(tmp_path):
    variant, planned = table("table5", "RN101", tmp_path)
    cell = next(cell for cell in planned if cell.row == "Baseline")
    store(cell, last=50, oracle=55, per_class={str(i): float(i) for i in range(12)})
    page = markdown(variant, collect(variant, tmp_path, 1), "")
    assert line(page, "Baseline", "last") == [*(f"{i}.0" for i in range(12)), "50.0", "0.000"]
    assert line(page, "Baseline", "oracle - paper")[-2] == "-11.5"


@pytest.mark.parametrize("done", [False, True])
def test_figures_are_drawn_with_and_without_results(tmp_path, done):
    variant, planned = table("figure4", "RN50", tmp_path)
    if done:
        for cell in planned:
            store(cell, last=60, oracle=70, dsp=100)
    rows = collect(variant, tmp_path, 1)
    assert draw_curves(variant.title, rows, tmp_path / "curves.png") is done
    draw_storage(variant.title, rows, tmp_path / "storage.png")
    assert (tmp_path / "curves.png").exists() is done
    assert (tmp_path / "storage.png").stat().st_size > 1000

"""The report's numbers against stored results."""

import json

from examples.segmentation.cells import cells
from examples.segmentation.classes import CLASSES
from examples.segmentation.report import collect, markdown
from examples.segmentation.tables import load_table


def store(cell, miou, **changes):
    cell.path.parent.mkdir(parents=True, exist_ok=True)
    points = [
        {"iteration": 0, "miou": 1.0, "losses": {}, "threshold": None, "kept": None},
        {"iteration": 5, "miou": miou, "losses": {"source": 2.5, "mixed": 9}, "threshold": 1e-3, "kept": 0.25},
        {"iteration": 9, "miou": miou, "losses": {"source": 1.25, "mixed": 9}, "threshold": 2e-3, "kept": 0.125},
    ]
    result = {
        "fingerprint": cell.settings.fingerprint(),
        "last": miou,
        "best": miou + 1,
        "per_class": {"road": 90.0, "bike": 40.0},
        "dsp": 6_380_000,
        "bytes": 1234,
        "hours": 0.5,
        "curve": points,
        **changes,
    }
    cell.path.write_text(json.dumps(result))


def line(page, *begin):
    (found,) = (text for text in page.splitlines() if text.startswith("| " + " | ".join(begin) + " |"))
    return [entry.strip() for entry in found.strip("|").split("|")][len(begin) :]


def test_ours_the_paper_s_and_the_difference(tmp_path):
    table = load_table("gta_cityscapes")
    planned = cells(table, tmp_path, seeds=2)
    for cell in planned:
        if cell.row == "RST-config1":
            store(cell, 54.0 + 2 * (cell.seed - 42))
    page = markdown(table, collect(planned), "the command", generated=False)
    assert line(page, "RST-config1", "paper")[0] == "93.8"
    assert line(page, "RST-config1", "paper")[-2:] == ["53.1", "5.88"]
    ours = line(page, "RST-config1", "ours")
    assert (ours[0], ours[1], ours[18], ours[19], ours[20]) == ("90.0", "-", "40.0", "55.0", "6.38")
    difference = line(page, "RST-config1", "ours - paper")
    assert (difference[0], difference[1], difference[19], difference[20]) == ("-3.8", "-", "+1.9", "+0.50")
    assert line(page, "LoRA", "ours") == ["-"] * (len(CLASSES) + 2)
    assert line(page, "RST-config1", "1.0") == ["55.0", "56.0", "2.500", "1.250", "12.50 %", "1,234", "0.500"]

"""Learning rates chosen from stored runs without a label, and the table made from them."""

import json

import pytest

from examples.peft_comparison.choice import choose
from examples.peft_comparison.report import collect, markdown, write
from tests.examples.peft_comparison.tiny_plan import PLAN, tuning_of

LOW, HIGH = PLAN.rates


def store(cell, score, accuracy=50.0, **changes):
    cell.path.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "status": "finished",
        "last": accuracy,
        "dsp": 1000,
        "bytes": 4000,
        "curve": [{"validators": {"im": score, "entropy": -score}}],
        "fingerprint": cell.settings.fingerprint(),
    }
    cell.path.write_text(json.dumps({**result, **changes}))


def store_search(tuning, output, scores, **changes):
    for (rate, cell), score in zip(PLAN.search(tuning, output).items(), scores, strict=True):
        store(cell, score, accuracy=99.0 if rate == LOW else 1.0, **changes)


def test_the_highest_score_wins_whatever_the_accuracy(tmp_path):
    tuning = tuning_of("BitFit")
    store_search(tuning, tmp_path, [0.5, 1.5])  # the lower rate is the better one by the labels
    choice = choose(PLAN, tuning, tmp_path)
    assert (choice.rate, choice.scores) == (HIGH, {LOW: 0.5, HIGH: 1.5})


def test_the_choice_needs_nothing_that_knows_a_label(tmp_path):
    tuning = tuning_of("BitFit")
    for (_, cell), score in zip(PLAN.search(tuning, tmp_path).items(), (2.0, 1.0), strict=True):
        store(cell, score)
        result = json.loads(cell.path.read_text())
        del result["last"]
        cell.path.write_text(json.dumps(result))
    assert choose(PLAN, tuning, tmp_path).rate == LOW


def test_no_choice_before_the_search_is_done(tmp_path):
    tuning = tuning_of("BitFit")
    store(PLAN.search(tuning, tmp_path)[LOW], 1.0)
    assert choose(PLAN, tuning, tmp_path) is None


def test_a_diverged_rate_is_not_chosen(tmp_path):
    tuning = tuning_of("BitFit")
    store_search(tuning, tmp_path, [0.1, 9.0])
    store(PLAN.search(tuning, tmp_path)[HIGH], 9.0, status="diverged")
    assert choose(PLAN, tuning, tmp_path).scores == {LOW: 0.1, HIGH: None}
    assert choose(PLAN, tuning, tmp_path).rate == LOW
    store(PLAN.search(tuning, tmp_path)[LOW], 9.0, status="diverged")
    assert choose(PLAN, tuning, tmp_path) is None


@pytest.fixture
def finished(tmp_path):
    """LoRA r=1 is done at the high rate, 70, 72, 74 on the first task and 80, 80, 83 on the second; BitFit half."""
    for cell in PLAN.zero_shot(tmp_path):
        store(cell, 0.0, accuracy=40.0, dsp=0, bytes=0)
    lora, bitfit = tuning_of("LoRA r=1"), tuning_of("BitFit")
    store_search(lora, tmp_path, [0.5, 1.5])
    for cell, accuracy in zip(PLAN.final(lora, HIGH, tmp_path), (70, 72, 74, 80, 80, 83), strict=True):
        store(cell, 1.5, accuracy=accuracy)
    store_search(bitfit, tmp_path, [0.5, 0.2])
    store(PLAN.final(bitfit, LOW, tmp_path)[1], 0.5, accuracy=61.0)
    return tmp_path


def test_table(finished):
    page = markdown(PLAN, collect(PLAN, finished))
    assert "| LoRA r=1 | 72.0 ± 2.0 | 81.0 ± 1.7 | 76.5 ± 1.8 | 1,000 | 4,000 |" in page
    assert "| BitFit | 80.0 ± 26.9 (2) | - | - | 1,000 | 4,000 |" in page
    assert "| Teacher, zero-shot | 40.0 | 40.0 | 40.0 | 0 | 0 |" in page
    assert "| LoRA r=1 | 0.500 | **1.500** |" in page
    assert "LoRA r=4" not in page


def test_files(finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    assert write([PLAN], finished, folder) == (folder / "report.md").read_text()
    assert (folder / f"{PLAN.name}.png").stat().st_size > 10_000
    numbers = json.loads((folder / f"{PLAN.name}.json").read_text())
    lora = next(row for row in numbers["rows"] if row["label"] == "LoRA r=1")
    assert lora["accuracy"]["C-I"] == [70, 72, 74]
    assert lora["choice"] == {"rate": HIGH, "scores": {str(LOW): 0.5, str(HIGH): 1.5}}

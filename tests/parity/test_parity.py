"""Every method's values and gradients are those of the code that its authors released."""

from pathlib import Path

import pytest

from tests.parity.numbers import FOLDER
from tests.parity.originals import ORIGINALS

PAGE = Path(__file__).parents[2] / "docs" / "parity.md"
with_numbers = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"the originals' numbers are not at {FOLDER}")


def test_the_page_has_a_line_for_each_original_within_its_tolerances() -> None:
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.read_text().splitlines()]
    rows = {line[0]: line[1:] for line in lines if len(line) == 5 and line[0] not in ("method", "---")}
    originals = {original.method: original for original in ORIGINALS.values()}
    assert rows.keys() == originals.keys()
    for method, (source, values, gradients, unequal) in rows.items():
        original = originals[method]
        assert source == original.source
        assert float(values or 0) <= original.values
        assert float(gradients or 0) <= original.gradients
        assert unequal in ("", "0")


@with_numbers
def test_every_file_of_numbers_is_compared() -> None:
    assert {path.stem for path in FOLDER.iterdir() if path.suffix in (".npz", ".json")} == ORIGINALS.keys()


@with_numbers
@pytest.mark.parametrize("name", ORIGINALS)
def test_agrees_with_the_released_code(name: str) -> None:
    original = ORIGINALS[name]
    tolerances = {"values": original.values, "gradients": original.gradients, "exact": 0.0}
    cases = original.read(name)
    assert cases
    wrong = []
    for case_name, case in cases.items():
        compared = list(original.compare(case_name, case).merged())
        assert compared, case_name
        wrong += [
            f"{case_name}, {kind}, {what}: {difference:.1e} > {tolerances[kind]:.1e}"
            for kind, what, difference in compared
            if not difference <= tolerances[kind]
        ]
    assert not wrong, "\n".join(wrong)

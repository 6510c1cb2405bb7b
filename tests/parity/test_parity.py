"""Every method's values and gradients are those of the code that its authors released."""

import pytest

from tests.parity.numbers import FOLDER
from tests.parity.originals import ORIGINALS

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"the originals' numbers are not at {FOLDER}")


def test_every_file_of_numbers_is_compared() -> None:
    assert {path.stem for path in FOLDER.iterdir() if path.suffix in (".npz", ".json")} == ORIGINALS.keys()


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

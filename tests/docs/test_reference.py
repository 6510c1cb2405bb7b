"""Every public name has its place in the API reference, and every name there exists."""

import re
from importlib import import_module
from pathlib import Path

import pytest

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference"
PAGES = {
    "rst": "rst.md",
    "rst.sync": "sync.md",
    "rst.distributed": "distributed.md",
    "rst.quantized": "quantized.md",
    "cmkd": "cmkd.md",
}


def documented(page: str) -> list[str]:
    return re.findall(r"^::: (\S+)", (REFERENCE / page).read_text(), re.MULTILINE)


@pytest.mark.parametrize("module", PAGES)
def test_every_public_name_is_documented_once(module: str) -> None:
    public = [f"{module}.{name}" for name in import_module(module).__all__ if name != "__version__"]
    found = [name for name in documented(PAGES[module]) if name != "cmkd.baselines"]
    assert sorted(found) == sorted(public), f"docs/reference/{PAGES[module]}: {sorted({*found} ^ {*public})}"


def test_the_other_formats_exist() -> None:
    for name in documented("interop.md"):
        module, _, attribute = name.rpartition(".")
        assert hasattr(import_module(module), attribute), name

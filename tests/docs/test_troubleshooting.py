"""The page quotes messages that the library has, so that a reader who searches for one finds it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
QUOTES = re.findall(r"^\| `([^`]+)`", (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
# Strings as they are written: over several lines, with numbers to be filled in.
SOURCES = re.sub(r'"\s+f?"', "", "".join(path.read_text(encoding="utf-8") for path in (ROOT / "rst").rglob("*.py")))


@pytest.mark.parametrize("quote", QUOTES)
def test_the_message_exists(quote: str) -> None:
    assert quote in SOURCES


def test_there_are_quotes() -> None:
    assert len(QUOTES) > 15

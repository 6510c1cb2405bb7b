"""What the files beside the code say of it: the version, and where things are."""

import re
from pathlib import Path

import pytest

from rst import __version__

ROOT = Path(__file__).resolve().parents[1]


def test_citation_and_changelog_are_of_this_version() -> None:
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    newest = re.search(r"^## (\S+?),? ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert cited
    assert newest
    assert (cited[1], newest[1]) == (__version__, __version__)


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "RELEASE.md", "SECURITY.md"])
def test_the_paths_that_a_page_names_exist(page: str) -> None:
    named = re.findall(r"`((?:rst|cmkd|tests|examples|benchmarks|docs)/[\w./-]*)`", (ROOT / page).read_text())
    missing = [path for path in named if not (ROOT / path).exists()]
    assert not missing, missing
    assert named or page == "SECURITY.md"

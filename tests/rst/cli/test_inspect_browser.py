"""The page of `rst inspect --html` in a real browser: painted in light and in dark, wide and narrow, and inert."""

import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import torch

from rst import export
from tests.rst.cli.page_parser import Page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no headless browser; apt-get install chromium")
QUIET = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
]  # fmt: skip
LIGHT = {"paper": (251, 251, 253), "sparse": (50, 88, 212), "whole": (194, 101, 10), "rule": (192, 39, 67)}
DARK = {"paper": (19, 21, 26), "sparse": (127, 157, 255), "whole": (240, 160, 75), "rule": (255, 125, 146)}


@pytest.fixture
def page(rst, tmp_path: Path) -> Path:
    """A page of a model with two stacks of blocks, a head, and a name that is a script."""
    draw = torch.Generator().manual_seed(0)
    names = [f"{tower}.blocks.{block}.weight" for tower in ("image", "text") for block in range(6)]
    base = {name: torch.zeros(50, 20) for name in [*names, "<script>document.title = 'run'</script>"]}
    base["head.weight"] = torch.zeros(3, 20)
    tuned = {name: torch.randn(tensor.shape, generator=draw) * 1e-3 for name, tensor in base.items()}
    export(base, tuned, threshold=1e-3, modules_to_save=["head"]).save(tmp_path / "d.safetensors")
    assert rst("inspect", "d.safetensors", "--html", "page.html").code == 0
    return tmp_path / "page.html"


def browse(page: Path, *options: str) -> str:
    assert BROWSER
    command = [BROWSER, *QUIET, f"--user-data-dir={page.parent / 'profile'}", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, cwd=page.parent).stdout


def colors(page: Path, width: int, height: int, scheme: int) -> Counter[tuple[int, int, int]]:
    """Count the colours of a screenshot, in pixels; scheme 0 is dark, 1 is light."""
    image = pytest.importorskip("PIL.Image")
    picture = page.parent / "shot.png"
    browse(
        page,
        f"--blink-settings=preferredColorScheme={scheme}",
        f"--window-size={width},{height}",
        f"--screenshot={picture}",
    )
    with image.open(picture) as opened:
        assert opened.size == (width, height)
        return Counter({color: count for count, color in opened.convert("RGB").getcolors(width * height)})


def test_light_and_wide(page: Path) -> None:
    seen = colors(page, 1200, 2200, scheme=1)
    assert seen[LIGHT["paper"]] > 200_000
    assert seen[LIGHT["sparse"]] > 20_000  # bars of three kinds of charts
    assert seen[LIGHT["whole"]] > 500  # the head
    assert seen[LIGHT["rule"]] > 50  # tau


def test_dark_and_narrow(page: Path) -> None:
    seen = colors(page, 500, 3600, scheme=0)
    assert seen[DARK["paper"]] > 50_000
    assert seen[DARK["sparse"]] > 5_000
    assert seen[DARK["rule"]] > 50
    assert not seen[LIGHT["paper"]]


def test_nothing_in_it_runs_or_is_mended(page: Path) -> None:
    shown = Page(browse(page, "--dump-dom"))
    assert shown.all("title")[0].text == "d.safetensors: sparse delta"
    assert not shown.all("script")
    written = Page(page.read_text(encoding="utf-8"))
    assert [element.tag for element in shown.elements] == [element.tag for element in written.elements]

"""The page of `rst inspect --html`: whole, self-contained, escaped, and true to the delta."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rst import BaseIdentity, SparseDelta, export
from tests.rst.cli.conftest import files, is_one_sentence, weights
from tests.rst.cli.page_parser import Page

SECTIONS = [
    "Density by layer",
    "Density by depth",
    "Residuals against tau",
    "Size against the alternatives",
    "Provenance",
]
HOSTILE = [
    "<script>alert(1)</script>.0.weight",
    '"><img src="http://evil.example/x" onerror=alert(1)>.1.weight',
    "</style></title><svg onload=alert(1)>.0.bias",
    "{{ 7 * 7 }}{% raw %}.1.bias",
    "reversed \u202e and \x1b[2J and \x00.0.gain",
    "x" * 300,
]


def read(path: Path) -> Page:
    """Parse a page and check what must hold of any: no scripts, ids that are there once and lead somewhere."""
    page = Page(path.read_text(encoding="utf-8"))
    assert page.source.startswith("<!DOCTYPE html>")
    assert [element.text for element in page.all("h2")] == SECTIONS
    assert not {"script", "link", "img", "iframe", "object", "base", "image", "use", "a"} & {
        e.tag for e in page.elements
    }
    for element in page.elements:
        assert not {"src", "href", "xlink:href", "style", "srcset", "action"} & element.attributes.keys()
        assert not any(name.startswith("on") for name in element.attributes)
    style = page.all("style")[0].text
    assert "url(" not in style
    assert "@import" not in style
    policy = [e.attributes["content"] for e in page.all("meta") if "http-equiv" in e.attributes]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]
    ids = [element.attributes["id"] for element in page.elements if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    for element in page.elements:
        assert set(element.attributes.get("aria-labelledby", "").split()) <= set(ids)
    for picture in page.all("svg"):
        assert picture.attributes.get("aria-hidden") == "true" or picture.attributes["role"] == "img"
    return page


def test_the_page_of_a_delta(rst, tmp_path, delta):
    ran = rst("inspect", delta.name, "--html", "page.html")
    assert ran.code == 0
    assert ran.out.startswith("wrote page.html (")
    page = read(tmp_path / "page.html")
    loaded = SparseDelta.load(delta)
    text = page.all("main")[0].text
    for name in [*loaded, *loaded.dense]:
        assert name in text
    assert loaded.fingerprint() in text
    assert f"{loaded.nnz:,}" in page.all("header")[0].text
    rows = [element.text for element in page.all("tr")]
    stem = loaded["stem.weight"]
    assert any(
        row.startswith("stem.weight7×5float32") and f"{stem.nnz}35{stem.nnz / 35:.3%}"[:5] in row for row in rows
    )
    bars = [e for e in page.all("rect") if e.attributes.get("class", "").startswith("hover")]
    assert len(bars) >= len(loaded) + len(loaded.dense)
    assert "base.pt" in text
    assert "computed" in text


def test_hostile_names_are_text(rst, tmp_path):
    base = {name: torch.zeros(4) for name in HOSTILE}
    delta = export(base, {name: tensor + 1 for name, tensor in base.items()}, modules_to_save=["x" * 300])
    delta.save(tmp_path / "d.safetensors")
    assert rst("inspect", "d.safetensors", "--html", "page.html").code == 0
    page = read(tmp_path / "page.html")
    text = page.all("main")[0].text
    for name in HOSTILE[:4]:
        assert name in text
    assert "\\u202e and \\x1b[2J" in text
    assert not set(page.source) & {"\u202e", "\x1b", "\x00"}


def test_hostile_settings_and_a_hostile_base_name_are_text(rst, tmp_path):
    delta = export({"w": torch.zeros(2)}, {"w": torch.ones(2)})
    evil = "</dd><script>alert(1)</script>\u202e"
    config = {"threshold": {"schedule": evil}, evil: [evil]}
    replace(delta, base=BaseIdentity(evil, evil, 2), config=config).save(tmp_path / "d.safetensors")
    assert rst("inspect", "d.safetensors", "--html", "page.html").code == 0
    page = read(tmp_path / "page.html")
    assert page.all("main")[0].text.count("<script>alert(1)</script>") >= 3


@pytest.mark.parametrize("count", [0, 1, 500])
def test_any_number_of_parameters(rst, tmp_path, count):
    base = {f"stack.{number // 5}.part{number % 5}": torch.zeros(20) for number in range(count)}
    draw = torch.Generator().manual_seed(0)
    tuned = {name: (torch.rand(20, generator=draw) < 0.3) * 1e-3 for name in base}
    delta = export({**base, "w": torch.zeros(1)}, {**tuned, "w": torch.zeros(1)}, threshold=1e-4)
    delta.save(tmp_path / "d.safetensors", "packed")
    assert rst("inspect", "d.safetensors", "--html", "page.html").code == 0
    page = read(tmp_path / "page.html")
    assert len([e for e in page.all("th") if e.attributes.get("class") == "name"]) == 2 * len(delta)
    charts = [e for e in page.all("svg") if e.attributes.get("role") == "img"]
    assert len(charts) == {0: 0, 1: 2, 500: 3}[count]


def test_with_the_base_spared_parameters_and_residuals_of_steps_are_shown(rst, tmp_path, pair, delta):
    rst("convert", delta.name, "steps.safetensors", "--op", "step", "--base", "base.pt")
    assert rst("inspect", "steps.safetensors", "--html", "plain.html").code == 0
    assert rst("inspect", "steps.safetensors", "--html", "full.html", "--base", "base.pt").code == 0
    plain, full = (read(tmp_path / name).all("main")[0].text for name in ("plain.html", "full.html"))
    assert "their residuals need the base" in plain
    assert "No residual to show" in plain
    assert "untouched.weight" not in plain
    assert "No residual to show" not in full
    assert "untouched.weight" in full
    torch.save(weights(torch.float32, seed=5), tmp_path / "other.pt")
    before = files(tmp_path)
    wrong = rst("inspect", "steps.safetensors", "--html", "wrong.html", "--base", "other.pt")
    assert is_one_sentence(wrong)
    assert "not the tensor the delta was made from" in wrong.err
    assert files(tmp_path) == before


def test_the_page_overwrites_nothing_unasked(rst, tmp_path, delta):
    (tmp_path / "page.html").write_text("mine")
    refused = rst("inspect", delta.name, "--html", "page.html")
    assert is_one_sentence(refused)
    assert (tmp_path / "page.html").read_text() == "mine"
    assert is_one_sentence(rst("inspect", delta.name, "--html", delta.name, "--force"))
    forced = rst("inspect", delta.name, "--html", "page.html", "--force", "--json")
    assert json.loads(forced.out)["html"] == "page.html"
    read(tmp_path / "page.html")
    assert is_one_sentence(rst("inspect", delta.name, "--base", "base.pt"))


def test_the_table_in_the_terminal_is_unchanged_by_the_page(rst, tmp_path, pair):
    save_file(pair[0], tmp_path / "base.safetensors")
    assert is_one_sentence(rst("inspect", "base.safetensors", "--html", "page.html"))
    assert not (tmp_path / "page.html").exists()

"""`rst tau`: every row of the curve is what an export with that threshold gives."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rst import export
from tests.rst.cli.page_parser import Page


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A folder of shards as base, one file as tuned weights; biases, half precision and a head that is new."""
    generator = torch.Generator().manual_seed(0)
    base = {f"block.{k}.weight": torch.randn(100, 200, generator=generator) for k in range(3)}
    base |= {f"block.{k}.bias": torch.randn(100, generator=generator) for k in range(3)}
    base["half.weight"] = torch.randn(64, 64, generator=generator).to(torch.bfloat16)
    tuned = {
        name: tensor + (1e-3 * torch.randn(tensor.shape, generator=generator) ** 3).to(tensor.dtype)
        for name, tensor in base.items()
    }
    tuned["head.weight"] = torch.randn(10, 100, generator=generator)
    folder = tmp_path / "base"
    folder.mkdir()
    index = {}
    for number, (name, tensor) in enumerate(base.items()):
        index[name] = f"model-{number}.safetensors"
        save_file({name: tensor}, folder / index[name])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    save_file(tuned, tmp_path / "tuned.safetensors")
    return folder, tmp_path / "tuned.safetensors"


def test_rows_are_what_exports_give(rst, pair: tuple[Path, Path], tmp_path: Path) -> None:
    curve = rst("tau", *pair, "--json").json
    assert curve["weights"] == 3 * 20_100 + 4096
    assert curve["whole_bytes"] == 4000
    taus = [point["tau"] for point in curve["points"]]
    assert taus == sorted(taus)
    assert taus[0] == 0
    assert len(taus) > 8
    tuned = load_file(pair[1])
    for point in curve["points"]:
        delta = export(*pair, threshold=point["tau"])
        assert point["kept"] == delta.nnz
        assert point["share"] == delta.nnz / curve["weights"]
        kept = export(*pair)
        put_back = torch.cat(
            [
                change.values[~torch.isin(change.indices, delta[name].indices if name in delta else torch.tensor([]))]
                for name, change in kept.items()
            ]
        ).double()
        assert point["dropped_l2"] == pytest.approx(float(put_back.norm()), rel=1e-2)
        assert point["dropped_max"] == pytest.approx(float(put_back.abs().max()) if len(put_back) else 0, rel=1e-2)
        for encoding in ("coo", "packed"):
            delta.save(tmp_path / "delta.safetensors", encoding)
            size = (tmp_path / "delta.safetensors").stat().st_size
            reported = point["plain_bytes" if encoding == "coo" else "packed_bytes"] + curve["whole_bytes"]
            assert 0 <= size - reported < 400 * len(tuned), "what is missing is the header"


def test_taus_keep_about_round_shares(rst, pair: tuple[Path, Path]) -> None:
    shares = [point["share"] for point in rst("tau", *pair, "--json").json["points"]]
    for wanted in (0.5, 0.1, 0.01, 0.002):
        assert min(abs(share / wanted - 1) for share in shares) < 0.1


def test_the_table_tells_how_to_export(rst, pair: tuple[Path, Path]) -> None:
    ran = rst("tau", *pair)
    assert ran.code == 0
    assert "64,396 weights" in ran.out
    assert f"rst export --base {pair[0]} {pair[1]}" in ran.out


def test_the_page_has_every_row(rst, pair: tuple[Path, Path], tmp_path: Path) -> None:
    curve = rst("tau", *pair, "--html", "tau.html", "--json").json
    page = Page((tmp_path / "tau.html").read_text(encoding="utf-8"))
    assert page.source.startswith("<!DOCTYPE html>")
    assert not page.all("script")
    text = " ".join(element.text for element in page.all("th") + page.all("td"))
    for point in curve["points"]:
        assert f"{point['kept']:,}" in text
        assert f"{point['tau']:g}" in text
    again = rst("tau", *pair, "--html", "tau.html")
    assert again.code == 2
    assert rst("tau", *pair, "--html", "tau.html", "--force").code == 0
    assert rst("tau", *pair, "--force").code == 2


def test_equal_weights_have_one_row(rst, pair: tuple[Path, Path]) -> None:
    (only,) = rst("tau", pair[0], pair[0], "--json").json["points"]
    assert (only["tau"], only["kept"], only["plain_bytes"], only["dropped_l2"]) == (0, 0, 0, 0)
    assert rst("tau", pair[0], pair[0]).code == 0


def test_what_is_stored_whole_is_not_selected_from(rst, pair: tuple[Path, Path]) -> None:
    curve = rst("tau", *pair, "--modules-to-save", "block.0", "--exclude", "half", "--json").json
    assert curve["weights"] == 2 * 20_100
    assert curve["whole_bytes"] == 4000 + 4 * 20_100


def test_a_nan_is_named(rst, tmp_path: Path) -> None:
    save_file({"w": torch.zeros(2)}, tmp_path / "a.safetensors")
    save_file({"w": torch.tensor([0.0, torch.nan])}, tmp_path / "b.safetensors")
    ran = rst("tau", "a.safetensors", "b.safetensors", "--json")
    assert (ran.code, ran.json["error"]["type"]) == (2, "NonFiniteError")
    assert "b.safetensors" in ran.json["error"]["message"]


def test_a_pair_without_a_change_is_told_so_and_offers_no_export(rst, pair: tuple[Path, Path]) -> None:
    ran = rst("tau", pair[0], pair[0])
    assert ran.code == 0
    assert "rst export" not in ran.out
    assert "rst export" in rst("tau", *pair).out


def test_the_largest_put_back_counts_all_smaller_taus(rst, tmp_path: Path) -> None:
    base = {"w": torch.zeros(4, 100)}
    tuned = {"w": torch.linspace(0.01, 0.04, 400).reshape(4, 100)}
    save_file(base, tmp_path / "b.safetensors")
    save_file(tuned, tmp_path / "t.safetensors")
    points = rst("tau", "b.safetensors", "t.safetensors", "--json").json["points"]
    for point in points[1:]:
        put_back = tuned["w"][tuned["w"] <= point["tau"]]
        assert point["dropped_max"] == pytest.approx(float(put_back.max()), rel=1e-6)


def test_one_of_several_sets_is_named(rst, tmp_path: Path) -> None:
    base = {"w": torch.zeros(4, 100)}
    ema = {"w": torch.ones(4, 100)}
    torch.save({"state_dict": base, "state_dict_ema": base}, tmp_path / "b.pt")
    torch.save({"state_dict": base, "state_dict_ema": ema}, tmp_path / "t.pt")
    assert "--base-key" in rst("tau", "b.pt", "t.pt").err
    keys = ("--key", "state_dict_ema", "--base-key", "state_dict")
    assert rst("tau", "b.pt", "t.pt", *keys, "--json").json["points"][0]["kept"] == 400
    assert rst("export", "--base", "b.pt", "t.pt", *keys, "-o", "d.safetensors").code == 0
    assert rst("verify", "d.safetensors", "--base", "b.pt").code == 2
    assert rst("verify", "d.safetensors", "--base", "b.pt", "--base-key", "state_dict").code == 0

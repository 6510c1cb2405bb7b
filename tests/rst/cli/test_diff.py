"""`rst diff` prints what `rst.compare` finds, and the command that comes next."""

import shlex
from dataclasses import asdict

import pytest
import torch

from rst import compare, export
from tests.rst.cli.conftest import is_one_sentence, tune


@pytest.fixture
def two(pair, tmp_path):
    """`base.pt` and its deltas `a.safetensors` and `b.safetensors`, with heads that differ."""
    base, tuned = pair
    other = tune(base, seed=2)
    other["stem.bias"] = tuned["stem.bias"]
    export(tmp_path / "base.pt", {**tuned, "head": torch.ones(2)}).save(tmp_path / "a.safetensors")
    export(tmp_path / "base.pt", {**other, "head": torch.zeros(2)}).save(tmp_path / "b.safetensors")
    return tmp_path / "a.safetensors", tmp_path / "b.safetensors"


def test_the_table_and_the_totals(rst, two):
    ran = rst("diff", "a.safetensors", "b.safetensors")
    total = compare(*two).total
    lines = ran.out.splitlines()
    assert ran.code == 0
    assert lines[0].startswith("A         a.safetensors (")
    assert "of base.pt, op add" in lines[0]
    assert "bases     the same, by the digests of all parameters that both change" in lines
    shared = f"{total.shared:,} of {total.union:,} positions that either changes (Jaccard {total.jaccard:.3g})"
    assert f"shared    {shared}" in lines
    assert f"cosine    {total.cosine:.4f}" in lines
    assert any(line.startswith(f"same      {total.same} of the shared (") for line in lines)
    assert any(line.startswith(f"opposed   {total.opposed} of the shared (") for line in lines)
    assert "whole     head: different; norm.num_batches_tracked: same" in lines
    tensors = [line.split() for line in lines if line.strip().startswith(("stem", "scale"))]
    assert [words[0] for words in tensors] == ["stem.weight", "stem.bias", "scale"]
    assert [words[5] for words in tensors] == [str(compare(*two).parameters[words[0]].same) for words in tensors]
    short = rst("diff", "a.safetensors", "b.safetensors", "-n", "1").out
    assert "and 2 tensors that share less (--all shows them)" in short
    assert "share less" not in rst("diff", "a.safetensors", "b.safetensors", "-n", "1", "--all").out


def test_the_next_command_works(rst, two, tmp_path):
    ran = rst("diff", "a.safetensors", "b.safetensors")
    command = next(line for line in ran.out.splitlines() if line.startswith("next")).split(maxsplit=1)[1]
    program, *words = shlex.split(command)
    assert program == "rst"
    assert "--sparse-only" in words
    assert rst(*words).code == 0
    assert (tmp_path / "both.safetensors").is_file()


def test_as_json_everything(rst, two):
    record = rst("diff", "a.safetensors", "b.safetensors", "--json").json
    found = compare(*two)
    assert record["total"] == {**asdict(found.total), "union": found.total.union, "jaccard": found.total.jaccard}
    assert record["tensors"].keys() == found.parameters.keys()
    assert record["tensors"]["stem.bias"]["same"] == found.parameters["stem.bias"].same
    assert record["whole"] == {"norm.num_batches_tracked": "same", "head": "different"}
    assert record["a"]["file_bytes"] == two[0].stat().st_size
    assert (record["b"]["base"], record["b"]["op"]) == ("base.pt", "add")


def test_steps_ask_for_the_base(rst, two):
    for name in "ab":
        rst("convert", f"{name}.safetensors", f"{name}-steps.safetensors", "--op", "step", "--base", "base.pt")
    blind = rst("diff", "a-steps.safetensors", "b-steps.safetensors")
    assert "opposed   unknown" in blind.out
    assert "hint      pass the base weights with --base to compute what is unknown" in blind.out
    assert "next      combining needs residuals: rst convert a-steps.safetensors" in blind.out
    seeing = rst("diff", "a-steps.safetensors", "b-steps.safetensors", "--base", "base.pt")
    assert "hint" not in seeing.out
    exact = rst("diff", "a.safetensors", "b.safetensors", "--base", "base.pt", "--json").json["total"]
    assert f"opposed   {exact['opposed']} of the shared" in seeing.out


def test_other_bases_are_told(rst, two, pair, tmp_path):
    base, tuned = pair
    torch.save({**base, "stem.weight": base["stem.weight"] * 2, "scale": base["scale"] * 2}, tmp_path / "other.pt")
    export(tmp_path / "other.pt", tuned).save(tmp_path / "c.safetensors")
    ran = rst("diff", "a.safetensors", "c.safetensors")
    assert "bases     different: stem.weight and 1 more" in ran.out
    assert "next      deltas of different bases cannot be combined" in ran.out
    refused = rst("diff", "a.safetensors", "c.safetensors", "--base", "base.pt")
    assert is_one_sentence(refused)
    assert "are not those the delta was made from" in refused.err


def test_nothing_in_common(rst, tmp_path):
    base = {"a": torch.zeros(2), "b": torch.zeros(2)}
    for name in base:
        export(base, {**base, name: torch.ones(2)}).save(tmp_path / f"{name}.safetensors")
    ran = rst("diff", "a.safetensors", "b.safetensors")
    assert "bases     unknown, because the deltas have no digests in common" in ran.out
    assert "same      0 of the shared lead" in ran.out
    assert "cosine    0.0000" in ran.out
    assert is_one_sentence(rst("diff", "a.safetensors", "gone.safetensors"))

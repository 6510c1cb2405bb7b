"""`rst convert`: every form of a delta merges to the same bytes."""

from itertools import product

import pytest
import torch

from tests.rst.cli.conftest import files, is_one_sentence, read, same_bytes, weights

FORMS = list(product(["coo", "packed"], ["add", "replace", "step"]))


@pytest.mark.parametrize(("encoding", "op"), FORMS)
def test_every_form_merges_to_the_tuned_weights_and_leads_back(rst, tmp_path, pair, delta, encoding, op):
    _, tuned = pair
    ran = rst("convert", delta.name, "x.safetensors", "--encoding", encoding, "--op", op, "--base", "base.pt", "--json")
    assert ran.code == 0
    assert (ran.json["encoding"], ran.json["op"]) == (encoding, op)
    assert ran.json["bytes"] == (tmp_path / "x.safetensors").stat().st_size
    assert rst("merge", "base.pt", "x.safetensors", "-o", "merged.pt").code == 0
    assert same_bytes(read(tmp_path / "merged.pt"), tuned)
    assert rst("convert", "x.safetensors", "back.safetensors", "--op", "add", "--base", "base.pt").code == 0
    assert (tmp_path / "back.safetensors").read_bytes() == delta.read_bytes()


def test_another_encoding_needs_no_base(rst, tmp_path, delta):
    ran = rst("convert", delta.name, "small.safetensors", "--encoding", "packed")
    assert (ran.code, ran.err) == (0, "")
    assert "wrote small.safetensors (" in ran.out
    assert "encoding packed, op add" in ran.out
    back = rst("convert", "small.safetensors", "back.safetensors")
    assert (back.code, back.err) == (0, "")
    assert (tmp_path / "back.safetensors").read_bytes() == delta.read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("x.safetensors", "--op", "step"), "needs the base weights"),
        (("x.safetensors", "--op", "step", "-b", "other.pt"), "are not those the delta was made from"),
        (("x.safetensors", "--op", "step", "-b", "missing.pt"), "missing.pt"),
        (("x.safetensors", "--op", "xor"), "--help)"),
        (("x.safetensors", "--encoding", "zip"), "--help)"),
        (("x.pt",), "a delta must be a .safetensors file"),
        (("tuned.delta.safetensors", "--force"), "never overwritten"),
        (("base.pt.safetensors",), "exists; overwrite it with --force"),
    ],
)
def test_refusals_write_nothing(rst, tmp_path, delta, words, message):
    torch.save(weights(torch.float32, seed=5), tmp_path / "other.pt")
    (tmp_path / "base.pt.safetensors").write_bytes(b"here first")
    before = files(tmp_path)
    ran = rst("convert", delta.name, *words)
    assert is_one_sentence(ran)
    assert message in ran.err
    assert files(tmp_path) == before

"""`rst export --op`: the file that the library writes, for every operation."""

import pytest

from rst import export
from tests.rst.cli.conftest import is_one_sentence, read, same_bytes


@pytest.mark.parametrize("encoding", ["coo", "packed"])
@pytest.mark.parametrize("op", ["add", "replace", "step", "smallest"])
def test_it_is_the_librarys_file_and_merges_to_the_tuned_weights(rst, tmp_path, pair, op, encoding):
    _, tuned = pair
    wanted = export("base.pt", "tuned.pt", op=op)
    wanted.save("wanted.safetensors", encoding)
    words = ("export", "--base", "base.pt", "tuned.pt", "-o", "d.safetensors", "--op", op, "--encoding", encoding)
    ran = rst(*words, "--json")
    assert (ran.code, ran.json["op"]) == (0, wanted.op)
    assert (tmp_path / "d.safetensors").read_bytes() == (tmp_path / "wanted.safetensors").read_bytes()
    assert rst("merge", "base.pt", "d.safetensors", "-o", "merged.pt").code == 0
    assert same_bytes(read(tmp_path / "merged.pt"), tuned)


def test_what_is_not_a_residual_is_said(rst, pair):
    words = ("export", "--base", "base.pt", "tuned.pt", "--dry-run")
    assert "op " not in rst(*words).out
    assert ", op step" in rst(*words, "--op", "step").out


def test_convert_says_what_it_chose(rst, pair, delta):
    ran = rst("convert", delta.name, "x.safetensors", "--op", "smallest", "--base", "base.pt", "--json")
    assert (ran.code, ran.json["op"]) == (0, export("base.pt", "tuned.pt", op="smallest").op)


def test_refusals(rst, pair, delta):
    refused = rst("convert", delta.name, "x.safetensors", "--op", "smallest")
    assert is_one_sentence(refused)
    assert "smallest" in refused.err
    assert rst("sync", "publish", "chain", "tuned.pt", "--op", "smallest").code == 2
    assert rst("export", "--base", "base.pt", "tuned.pt", "--op", "xor").code == 2

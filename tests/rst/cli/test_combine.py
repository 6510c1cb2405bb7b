"""`rst combine`: several deltas of one base become one, which merges like any other."""

from pathlib import Path

import pytest
import torch

import rst as library
from rst.cli.combine import MajoritySignMethod, Method
from rst.operations.combine import MajoritySignMethod as AllSignMethods
from rst.operations.combine import Method as AllMethods
from tests.rst.cli.conftest import files, is_one_sentence, read


@pytest.fixture
def two(tmp_path: Path) -> tuple[library.SparseDelta, library.SparseDelta]:
    """`base.pt`, and `a.safetensors` and `b.safetensors` that change it."""
    base = {"w": torch.zeros(6)}
    torch.save(base, tmp_path / "base.pt")
    first = library.export(base, {"w": torch.tensor([1.0, 2, 0, -4, 0, 0])})
    second = library.export(base, {"w": torch.tensor([0.0, -6, 8, -2, 0, 0])})
    first.save(tmp_path / "a.safetensors")
    second.save(tmp_path / "b.safetensors")
    return first, second


def test_a_weighted_sum_merges(rst, tmp_path, two):
    ran = rst("combine", "a.safetensors", "b.safetensors", "--weights", "0.5", "-0.5", "-o", "c.safetensors")
    assert (ran.code, ran.err) == (0, "")
    size = (tmp_path / "c.safetensors").stat().st_size
    assert f"wrote c.safetensors ({size / 1000:.1f} kB), linear of 2 deltas" in ran.out or f"({size} bytes)" in ran.out
    assert "4 weights in 1 parameters changed" in ran.out
    assert rst("merge", "base.pt", "c.safetensors", "-o", "merged.pt").code == 0
    assert read(tmp_path / "merged.pt")["w"].tolist() == [0.5, 4, -4, -1, 0, 0]


def test_a_base_named_is_known_again(rst, tmp_path, two):
    words = ("combine", "a.safetensors", "b.safetensors", "--weights", "1", "1")
    assert rst(*words, "--base", "base.pt", "-o", "c.safetensors").code == 0
    torch.save({"w": torch.ones(6)}, tmp_path / "other.pt")
    assert "w: not the tensor the delta was made from" in rst("merge", "other.pt", "c.safetensors").err
    refused = rst(*words, "--base", "other.pt", "-o", "d.safetensors")
    assert is_one_sentence(refused)
    assert "other.pt: w: not the tensor the deltas were made from" in refused.err


@pytest.mark.parametrize("method", ["ties", "dare_linear", "dare_ties", "magnitude_prune"])
@pytest.mark.parametrize("sign_method", MajoritySignMethod)
def test_every_method_is_the_librarys(rst, tmp_path, two, method, sign_method):
    words = ("--method", method, "--density", "0.7", "--majority-sign-method", sign_method.value, "--seed", "3")
    ran = rst(
        "combine", "a.safetensors", "b.safetensors", "-w", "1", "-w", "2", *words, "-o", "c.safetensors", "--json"
    )
    wanted = library.combine(
        two, [1, 2], method=method, density=0.7, majority_sign_method=sign_method.value,
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    assert library.SparseDelta.load(tmp_path / "c.safetensors") == wanted
    assert ran.json == {
        "output": "c.safetensors",
        "bytes": (tmp_path / "c.safetensors").stat().st_size,
        "encoding": "coo",
        "deltas": ["a.safetensors", "b.safetensors"],
        "changed": wanted.nnz,
        "parameters": len(wanted),
        "stored_whole": 0,
        "left_out": 0,
        "method": method,
        "weights": [1.0, 2.0],
        "density": 0.7,
    }


def test_the_choices_are_the_librarys():
    assert {choice.value for choice in Method} == set(AllMethods.__args__)
    assert {choice.value for choice in MajoritySignMethod} == set(AllSignMethods.__args__)


def test_heads_that_differ_can_be_left_out(rst, tmp_path, two):
    base = {"w": torch.zeros(6)}
    library.export(base, {"w": torch.ones(6), "head": torch.ones(2)}).save(tmp_path / "d.safetensors")
    words = ("combine", "a.safetensors", "d.safetensors", "-w", "1", "1", "-o", "c.safetensors")
    refused = rst(*words)
    assert is_one_sentence(refused)
    assert "head: cannot combine delta 1 (a.safetensors) and delta 2 (d.safetensors): it is stored whole" in refused.err
    ran = rst(*words, "--sparse-only")
    assert ran.code == 0
    assert "left out 1 tensors" in ran.out
    assert library.SparseDelta.load(tmp_path / "c.safetensors").dense == {}


def test_tensors_stored_whole_are_counted(rst, tmp_path, two):
    base = {"w": torch.zeros(6)}
    for name, value in (("e", 1.0), ("f", 2.0)):
        state = {"w": torch.full((6,), value), "head": torch.ones(2)}
        library.export(base, state).save(tmp_path / f"{name}.safetensors")
    ran = rst("combine", "e.safetensors", "f.safetensors", "-w", "1", "1", "-o", "c.safetensors")
    assert "6 weights in 1 parameters changed, 1 tensors stored whole" in ran.out
    assert "left out" not in ran.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a.safetensors", "-w", "1", "2", "-o", "c.safetensors"), "1 deltas and 2 weights"),
        (("a.safetensors", "-w", "one", "-o", "c.safetensors"), "--help)"),
        (("a.safetensors", "-o", "c.safetensors"), "--weights"),
        (("a.safetensors", "-w", "1"), "--output"),
        (("a.safetensors", "-w", "1", "--method", "slerp", "-o", "c.safetensors"), "--help)"),
        (("a.safetensors", "-w", "1", "--method", "ties", "-o", "c.safetensors"), "density=None"),
        (("a.safetensors", "-w", "1", "-o", "a.safetensors", "--force"), "never overwritten"),
        (("a.safetensors", "-w", "1", "-o", "c.pt"), "a delta must be a .safetensors file"),
        (("a.safetensors", "-w", "1", "-o", "b.safetensors"), "exists; overwrite it with --force"),
        (("gone.safetensors", "-w", "1", "-o", "c.safetensors"), "gone.safetensors: no such file"),
        (("a.safetensors", "e.safetensors", "-w", "1", "1", "-o", "c.safetensors"), "made from different bases"),
    ],
    ids=str,
)
def test_refusals_write_nothing(rst, tmp_path, two, words, message):
    library.export({"w": torch.ones(6)}, {"w": torch.zeros(6)}).save(tmp_path / "e.safetensors")
    before = files(tmp_path)
    ran = rst("combine", *words)
    assert is_one_sentence(ran)
    assert message in ran.err
    assert files(tmp_path) == before

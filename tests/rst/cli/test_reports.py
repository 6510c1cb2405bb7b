"""What the commands say: to people, to machines, in a rehearsal, in their help, and while they work."""

import re
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import save_file

import rst as library
from rst.cli import progress
from rst.cli.console import print_error
from rst.cli.progress import byte_progress
from tests.rst.cli.conftest import files, is_one_sentence, weights

COMMANDS = ("export", "tau", "merge", "inspect", "verify", "convert", "combine")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_an_example(rst, command):
    ran = rst(command, "--help")
    assert ran.code == 0
    assert f"Example: rst {command} " in ran.out
    assert "--json" in ran.out


def test_help_and_version_do_not_wait_for_torch():
    script = (
        "import sys; from rst.cli import main;"
        "codes = main(['--help']), main(['export', '--help']), main(['--version']);"
        "sys.exit(any(codes) or 'torch' in sys.modules or 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"rst {library.__version__}" in done.stdout


def test_no_command_at_all_shows_the_help_and_is_misuse(rst):
    ran = rst()
    assert ran.code == 2
    assert all(command in ran.out for command in COMMANDS)


def test_export_says_what_it_wrote(rst, tmp_path, pair):
    ran = rst("export", "--threshold", "1e-6", "tuned.pt", "--base", "base.pt")
    size = (tmp_path / "tuned.delta.safetensors").stat().st_size
    assert ran.err == ""
    assert f"wrote tuned.delta.safetensors ({size / 1000:.1f} kB, " in ran.out
    assert re.search(r"\d+ of 59 weights changed", ran.out)
    assert "rst merge base.pt tuned.delta.safetensors" in ran.out


def test_a_delta_larger_than_the_tuned_weights_is_said_and_written_packed(rst, tmp_path):
    torch.manual_seed(0)
    base = {"w": torch.randn(200, 200).half()}
    torch.save(base, tmp_path / "base.pt")
    torch.save({"w": base["w"] * 1.01}, tmp_path / "tuned.pt")
    ran = rst("export", "tuned.pt", "--base", "base.pt", "-o", "d.safetensors")
    assert all(fact in ran.err for fact in ("warning", "80.0 kB", "packed", "--threshold"))
    assert (tmp_path / "d.safetensors").stat().st_size < 80_000
    asked = rst("export", "tuned.pt", "--base", "base.pt", "-o", "e.safetensors", "--encoding", "packed", "--json").json
    assert asked["bytes"] == (tmp_path / "d.safetensors").stat().st_size
    assert asked["tuned_bytes"] == 80_000


def test_export_and_merge_as_json(rst, tmp_path, pair):
    exported = rst("export", "--threshold", "1e-6", "tuned.pt", "--base", "base.pt", "--json").json
    delta = library.SparseDelta.load(tmp_path / "tuned.delta.safetensors")
    assert exported == {
        "output": "tuned.delta.safetensors",
        "written": True,
        "bytes": (tmp_path / "tuned.delta.safetensors").stat().st_size,
        "tuned_bytes": 244,
        "encoding": "coo",
        "op": "add",
        "tuned": "tuned.pt",
        "base": "base.pt",
        "changed": delta.nnz,
        "weights": 59,
        "density": delta.density,
        "stored_whole": 1,
        "dsp": delta.dsp(),
        "config": {"threshold": 1e-6},
    }
    merged = rst("merge", "base.pt", "tuned.delta.safetensors", "--json").json
    assert merged == {
        "output": "base.merged.pt",
        "written": True,
        "bytes": (tmp_path / "base.merged.pt").stat().st_size,
        "base": "base.pt",
        "delta": "tuned.delta.safetensors",
        "changed": delta.nnz,
        "parameters": 3,
        "stored_whole": 1,
    }


def test_a_rehearsal_writes_nothing_and_says_what_it_would(rst, tmp_path, pair):
    base, _ = pair
    before = files(tmp_path)
    assert "would write tuned.delta.safetensors (" in rst("export", "tuned.pt", "--base", "base.pt", "--dry-run").out
    assert files(tmp_path) == before
    wet = rst("export", "tuned.pt", "--base", "base.pt", "--json").json
    assert wet["bytes"] == (tmp_path / "tuned.delta.safetensors").stat().st_size
    (tmp_path / "tuned.delta.safetensors").rename(tmp_path / "d.safetensors")
    dry = rst("export", "tuned.pt", "--base", "base.pt", "--json", "--dry-run").json
    assert not dry.pop("written")
    assert wet.pop("written")
    assert dry == wet

    before = files(tmp_path)
    assert "would write base.merged.pt (about" in rst("merge", "base.pt", "d.safetensors", "--dry-run").out
    record = rst("merge", "base.pt", "d.safetensors", "--dry-run", "--json").json
    assert (record["written"], record["bytes"]) == (False, sum(t.numel() * t.element_size() for t in base.values()))
    assert files(tmp_path) == before


def test_inspect_shows_base_settings_and_the_biggest_tensors(rst, delta):
    shown = rst("inspect", delta.name, "--limit", "2")
    lines = shown.out.splitlines()
    assert "base        base.pt, 59 weights compared" in lines
    assert any(line.startswith("format      version 1, encoding coo") for line in lines)
    names = [line.split()[0] for line in lines if "float32" in line]
    assert names == ["stem.weight", "stem.bias"]
    assert "and 2 smaller tensors (--all shows them)" in lines
    everything = rst("inspect", delta.name, "--all").out
    assert "norm.num_batches_tracked" in everything
    assert "smaller tensors" not in everything
    summary = rst("inspect", delta.name, "--limit", "0").out
    assert "and 4 smaller tensors (--all shows them)" in summary
    assert "density" not in summary  # no heads of columns without rows


def test_inspect_as_json_has_every_tensor_and_adds_up(rst, delta):
    record = rst("inspect", delta.name, "--json", "-n", "1").json
    loaded = library.SparseDelta.load(delta)
    assert record["base"] == {"name": "base.pt", "revision": None, "weights": 59, "fingerprint": loaded.fingerprint()}
    assert (record["format_version"], record["library_version"]) == ("1", library.__version__)
    assert record["file_bytes"] == delta.stat().st_size
    sparse = {tensor["name"]: tensor for tensor in record["tensors"] if tensor["kind"] == "sparse"}
    assert {name: (tensor["dsp"], tensor["bytes"]) for name, tensor in sparse.items()} == {
        name: (change.nnz, change.nbytes) for name, change in loaded.items()
    }
    assert [tensor["name"] for tensor in record["tensors"] if tensor["kind"] == "buffer"] == [
        "norm.num_batches_tracked"
    ]
    assert sum(tensor["dsp"] for tensor in record["tensors"]) == record["dsp"] == loaded.dsp()
    assert sum(tensor["bytes"] for tensor in record["tensors"]) == record["bytes"] == loaded.nbytes


def test_verify_with_and_without_a_base(rst, tmp_path, delta):
    assert "intact, 3 parameters, 1 tensors stored whole" in rst("verify", delta.name).out
    with_base = rst("verify", delta.name, "--base", "base.pt", "--json").json
    assert with_base == {
        "ok": True,
        "delta": delta.name,
        "base": "base.pt",
        "parameters": 3,
        "stored_whole": 1,
        "base_digests": 3,
        "signed_by": None,
    }
    torch.save({**weights(torch.float32), "stem.bias": torch.zeros(7)}, tmp_path / "other.pt")
    ran = rst("verify", delta.name, "--base", "other.pt")
    assert is_one_sentence(ran)
    assert "other.pt: stem.bias: not the tensor" in ran.err


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # by which rich takes the captured stream for a terminal


def test_slow_work_on_a_terminal_shows_a_bar_in_bytes(terminal, monkeypatch, capsys):
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)
    with byte_progress("merging") as on_progress:
        time.sleep(0.01)
        on_progress(500_000, 2_000_000)
    shown = capsys.readouterr()
    assert "merging" in shown.err
    assert "0.5/2.0 MB" in shown.err
    assert shown.out == ""


def test_fast_work_shows_no_bar(terminal, capsys):
    with byte_progress("merging") as on_progress:
        on_progress(1, 2)
    assert capsys.readouterr() == ("", "")


def test_no_bar_goes_into_a_log_file(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_PATIENCE", -1.0)
    with byte_progress("merging") as on_progress:
        on_progress(1, 2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("words", [("export", "tuned.pt", "--base", "base.pt"), ("merge", "base.pt", "d.safetensors")])
def test_commands_feed_the_bar(rst, tmp_path, delta, terminal, monkeypatch, words):
    delta.rename(tmp_path / "d.safetensors")
    monkeypatch.setattr(progress, "_PATIENCE", -1.0)
    assert "bytes" in rst(*words).err


def test_an_error_of_several_lines_becomes_one_sentence(capsys):
    print_error("CheckpointError", "first\n\tsecond\x1b[0m\n", as_json=False)
    assert capsys.readouterr().err == "error: first second\\x1b[0m\n"


@pytest.mark.parametrize(
    ("options", "moved", "said"),
    [
        ((), 0, ("1,000", "tuned.safetensors")),
        (("--threshold", "9"), 500, ("1,000", "9.0", "--ratio", "rst tau")),
        ((), 400, ("40.0%", "1,000", "--ratio 0.002", "rst tau")),
        (("--ratio", "0.1"), 20, ("2.000%", "10.000%")),
        (("--ratio", "0.1"), 100, ()),
        ((), 200, ()),
    ],
)
def test_an_odd_share_is_said_with_what_to_change(rst, tmp_path, options, moved, said):
    tuned = {"w": torch.zeros(1000)}
    save_file(tuned, tmp_path / "base.safetensors")
    tuned["w"][:moved] = 1
    save_file(tuned, tmp_path / "tuned.safetensors")
    ran = rst("export", "-b", "base.safetensors", "tuned.safetensors", *options)
    assert ran.code == 0
    assert ("warning" in ran.err) == bool(said)
    assert all(fact in ran.err for fact in said), ran.err


def test_a_record_of_no_step_is_said(rst, tmp_path):
    model = torch.nn.Linear(10, 10)
    trainer = library.ResidualSparseTrainer(model, library.RSTConfig(ratio=0.1))
    with torch.no_grad():
        model.weight += torch.randn(10, 10)
    torch.save({"state_dict": model.state_dict(), "rst": trainer.state_dict()}, tmp_path / "model.ckpt")
    ran = rst("export", "model.ckpt")
    assert (ran.code, "attach" in ran.err, "model.ckpt" in ran.err) == (0, True, True)

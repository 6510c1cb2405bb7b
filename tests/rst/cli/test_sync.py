"""`rst sync publish`, `follow` and `verify`: a chain of checkpoints, by command."""

import json
import signal
import subprocess
import sys
from typing import ClassVar

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.slow

STEPS = 3


def write_steps(folder):
    torch.manual_seed(0)
    state = {"module.a": torch.randn(50, 7).bfloat16(), "module.b": torch.randn(9)}
    for step in range(STEPS + 1):
        save_file(state, folder / f"{step}.safetensors")
        state = {name: tensor.clone() for name, tensor in state.items()}
        state["module.a"][step] *= 1.01
        state["module.b"][step] += 1


def test_checkpoints_become_a_chain_that_a_file_follows(rst, tmp_path):
    write_steps(tmp_path)
    begun = rst("sync", "publish", "chain", "0.safetensors", "--json").json
    assert (begun["step"], begun["anchored"]) == (0, True)
    (tmp_path / "served.safetensors").write_bytes((tmp_path / "0.safetensors").read_bytes())
    for step in range(1, STEPS + 1):
        done = rst("sync", "publish", "chain", f"{step}.safetensors", "--anchor-every", "2", "--json").json
        assert (done["step"], done["anchored"]) == (step, step % 2 == 0)
        assert 1 < done["changed"] <= 8
        followed = rst("sync", "follow", "chain", "--into", "served.safetensors", "--json").json
        assert (followed["from_step"], followed["step"], followed["state"]) == (step - 1, step, done["state"])
        served, wanted = load_file(tmp_path / "served.safetensors"), load_file(tmp_path / f"{step}.safetensors")
        assert served.keys() == wanted.keys()
        assert all(torch.equal(served[name], wanted[name]) for name in wanted)
    report = rst("sync", "verify", "chain", "--json").json
    assert (report["ok"], report["step"], report["deltas"], report["anchors"]) == (True, 3, 3, [0, 2])
    assert "intact from step 0 to 3" in rst("sync", "verify", "chain").out


def test_a_missing_file_comes_from_an_anchor(rst, tmp_path):
    write_steps(tmp_path)
    for step in range(3):
        assert f"step {step} is" in rst("sync", "publish", "chain", f"{step}.safetensors").out
    assert "step 2 is" in rst("sync", "follow", "chain", "--into", "new.safetensors").out
    new, wanted = load_file(tmp_path / "new.safetensors"), load_file(tmp_path / "2.safetensors")
    assert all(torch.equal(new[name.removeprefix("module.")], wanted[name]) for name in wanted)


def test_a_folder_follows_or_is_made(rst, tmp_path):
    write_steps(tmp_path)
    for step in range(3):
        rst("sync", "publish", "chain", f"{step}.safetensors", "--anchor-every", "1")
    assert "step 2 is" in rst("sync", "follow", "chain", "--into", "model/").out
    new, wanted = load_file(tmp_path / "model" / "model.safetensors"), load_file(tmp_path / "2.safetensors")
    assert all(torch.equal(new[name.removeprefix("module.")], wanted[name]) for name in wanted)
    (tmp_path / "model" / "model.safetensors").unlink()
    old, files = load_file(tmp_path / "1.safetensors"), {}
    for name, tensor in old.items():
        files[name] = f"model-0000{len(files) + 1}-of-00002.safetensors"
        save_file({name: tensor}, tmp_path / "model" / files[name])
    index = tmp_path / "model" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    followed = rst("sync", "follow", "chain", "--into", "model", "--json").json
    assert (followed["from_step"], followed["step"]) == (1, 2)
    for name, file in json.loads(index.read_text())["weight_map"].items():
        assert torch.equal(load_file(tmp_path / "model" / file)[name], wanted[name])
    missing = rst("sync", "follow", "chain", "--into", "elsewhere")
    assert (missing.code, "FOLDER/" in missing.err) == (2, True)


def test_refusals_name_what_is_wrong_and_leave_the_file(rst, tmp_path):
    write_steps(tmp_path)
    for step in range(3):
        rst("sync", "publish", "chain", f"{step}.safetensors")
    (tmp_path / "served.safetensors").write_bytes((tmp_path / "0.safetensors").read_bytes())
    delta = tmp_path / "chain" / "delta-0000000002.safetensors"
    delta.write_bytes(delta.read_bytes()[:-1])
    for words in (("verify", "chain"), ("follow", "chain", "--into", "served.safetensors")):
        ran = rst("sync", *words, "--json")
        assert (ran.code, ran.json["error"]["type"]) == (2, "ChainDamageError")
        assert "delta-0000000002" in ran.json["error"]["message"]
    assert (tmp_path / "served.safetensors").read_bytes() == (tmp_path / "0.safetensors").read_bytes()
    for words in (("verify", "nowhere"), ("follow", "nowhere", "--into", "x.safetensors")):
        ran = rst("sync", *words)
        assert ran.code == 2
        assert "nowhere/latest.json: " in ran.err
        assert "rst sync publish" in ran.err
    assert rst("sync", "follow", "chain", "--into", "x.pt").code == 2


def test_old_steps_are_pruned(rst, tmp_path):
    write_steps(tmp_path)
    for step in range(STEPS + 1):
        rst("sync", "publish", "chain", f"{step}.safetensors", "--anchor-every", "1")
    pruned = rst("sync", "prune", "chain", "--keep-anchors", "2", "--json").json
    assert (pruned["first"], pruned["anchors"], pruned["deltas"]) == (2, 2, 2)
    assert rst("sync", "verify", "chain", "--json").json["first"] == 2
    assert "begins with step 3" in rst("sync", "prune", "chain", "--keep-anchors", "1").out


def test_a_watching_follower_takes_each_step(rst, tmp_path):
    write_steps(tmp_path)
    assert rst("sync", "publish", "chain", "0.safetensors").code == 0
    watching = [sys.executable, "-m", "rst", "sync", "follow", "chain", "--into", "served.safetensors"]
    watching += ["--watch", "0.05"]
    with subprocess.Popen(
        watching, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_heed_interrupts
    ) as follower:
        try:
            for step in range(STEPS + 1):
                assert f"step {step} is" in follower.stdout.readline()
                served = load_file(tmp_path / "served.safetensors")
                wanted = load_file(tmp_path / f"{step}.safetensors")
                assert all(torch.equal(served[name.removeprefix("module.")], wanted[name]) for name in wanted)
                if step < STEPS:
                    assert rst("sync", "publish", "chain", f"{step + 1}.safetensors").code == 0
            follower.send_signal(signal.SIGINT)
            assert follower.wait(timeout=60) == 130
            assert "Traceback" not in follower.stderr.read()
        finally:
            follower.kill()


class Outages(MemoryFileSystem):
    """A store that says what happens to each read: "" nothing, None the user's Ctrl-C, anything else an outage."""

    protocol = "outages"
    to_come: ClassVar[list[str | None]] = []

    def get_file(self, *arguments, **settings):
        trouble = self.to_come.pop(0) if self.to_come else ""
        if trouble is None:
            raise KeyboardInterrupt
        if trouble:
            raise RuntimeError(trouble)  # as of a store's own client: no OSError
        return super().get_file(*arguments, **settings)


def test_a_store_that_does_not_answer_is_a_sentence_and_a_watcher_outlasts_it(rst, tmp_path, monkeypatch):
    fsspec.register_implementation("outages", Outages, clobber=True)
    write_steps(tmp_path)
    chain = "outages://chain"
    assert rst("sync", "publish", chain, "0.safetensors").code == 0
    monkeypatch.setattr(Outages, "to_come", ["503 busy"])
    failed = rst("sync", "follow", chain, "--into", "served.safetensors", "--watch", "0.01")
    assert (failed.code, "503 busy" in failed.err, failed.err.count("\n")) == (2, True, 1)
    rst("sync", "follow", chain, "--into", "served.safetensors")
    rst("sync", "publish", chain, "1.safetensors")
    # the last step, then a watcher's looks: two outages, one that goes well, Ctrl-C
    reads = ["", "", "", "503 busy", "503 again", "", None]
    monkeypatch.setattr(Outages, "to_come", reads)
    watched = rst("sync", "follow", chain, "--into", "served.safetensors", "--watch", "0.01")
    assert (watched.code, reads) == (130, [])
    assert "step 1 is" in watched.out
    assert "503 busy; trying again in 0.02 s" in watched.err
    assert "503 again; trying again in 0.04 s" in watched.err


def _heed_interrupts():
    """A shell starts what runs in the background with SIGINT ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)

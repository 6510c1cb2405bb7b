"""The first minutes: completion in the shell, `python -m rst`, and errors that say what to do next."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from rst import CheckpointError, from_peft, get_rst_model, to_shira
from rst.config import RSTConfig
from tests.refusal import refused
from tests.rst.cli.conftest import INSTALLED, is_one_sentence


def test_python_m_rst(tmp_path):
    command = [sys.executable, "-m", "rst", "--version"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("rst ")


def test_without_words_the_help_names_the_first_command(rst):
    ran = rst()
    assert ran.code == 2
    assert "rst export --base base.pt tuned.pt" in ran.out


def test_completion_is_shown_for_a_shell_and_installed(tmp_path):
    environment = {**os.environ, "HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    for option, words in (("--show-completion", "_rst_completion"), ("--install-completion", "completion installed")):
        done = subprocess.run(
            [INSTALLED, option, "bash"], env=environment, capture_output=True, text=True, timeout=60, check=True
        )
        assert words in done.stdout
    assert "rst.sh" in (tmp_path / ".bashrc").read_text()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_commands_and_leaves_files_to_the_shell(tmp_path):
    def complete(*words: str) -> list[str]:
        environment = {**os.environ, "_RST_COMPLETE": "complete_bash"}
        environment |= {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
        done = subprocess.run([INSTALLED], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        return done.stdout.split()

    (tmp_path / "model.delta.safetensors").touch()
    assert complete("rst", "d") == ["diff", "doctor"]
    assert complete("rst", "sync", "f") == ["follow"]
    assert "--html" in complete("rst", "inspect", "--h")
    assert complete("rst", "inspect", "model") == []  # nothing said, so bash's own completion of files takes over
    shown = subprocess.run([INSTALLED, "--show-completion", "bash"], capture_output=True, text=True, timeout=60,
                           env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"})  # fmt: skip
    assert "complete -o default -F _rst_completion rst" in shown.stdout


def test_a_missing_extra_is_named_on_import(tmp_path):
    code = """
import sys
from importlib import import_module, util
sys.modules |= {"transformers": None, "lightning": None, "pytorch_lightning": None}
util.find_spec = lambda name: None
for module, extra in (("transformers", "peft"), ("lightning", "lightning")):
    try:
        import_module(f"rst.interop.{module}")
    except ImportError as error:
        assert f'pip install "residual-sparse-training[{extra}]"' in str(error), error
    else:
        raise AssertionError(module)
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, timeout=120, check=True)


def test_a_missing_extra_is_named_by_the_commands(rst, tmp_path, pair, delta, monkeypatch):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    save_file(pair[0], tmp_path / "base" / "model.safetensors")
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    for package in ("transformers", "peft"):
        monkeypatch.setitem(sys.modules, package, None)
    for words in (("lora", "x.safetensors"), (delta.name, "shira", "--to", "shira")):
        ran = rst("convert", *words, "--base", "base")
        assert is_one_sentence(ran)
        assert 'pip install "residual-sparse-training[peft]"' in ran.err
    with refused(CheckpointError, 'pip install "residual-sparse-training[peft]"'):
        from_peft(tmp_path / "lora", tmp_path / "base")
    with refused(CheckpointError, 'pip install "residual-sparse-training[peft]"'):
        to_shira(delta, tmp_path / "out", tmp_path / "base")


def test_a_folder_that_is_no_adapter_but_nearly_one_names_the_next_step(rst, tmp_path, pair):
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    get_rst_model(torch.nn.Linear(2, 2), RSTConfig(), "art").save_pretrained(tmp_path / "adapters")
    for words in (("inspect",), ("merge", "base.pt")):
        lora, above = rst(*words, "lora"), rst(*words, "adapters")
        assert is_one_sentence(lora)
        assert "rst convert" in lora.err
        assert is_one_sentence(above)
        assert "adapters/art" in above.err.replace("\\", "/")
    assert rst("inspect", "adapters/art").code == 0


def test_a_base_as_a_second_argument_is_told_its_option(rst, pair):
    exported, merged = rst("export", "base.pt", "tuned.pt"), rst("merge", "base.pt", "tuned.pt", "more")
    assert is_one_sentence(exported)
    assert "after --base" in exported.err
    assert is_one_sentence(merged)
    assert "--base" not in merged.err


def test_an_adapter_s_folder_is_a_delta_and_other_folders_and_checkpoints_are_none(rst, tmp_path, pair):
    get_rst_model(torch.nn.Linear(2, 2), RSTConfig()).save_pretrained(tmp_path / "adapter")
    (tmp_path / "empty").mkdir()
    for command in ("inspect", "verify"):
        assert rst(command, "adapter").code == 0
        empty, pickle = rst(command, "empty"), rst(command, "base.pt")
        assert is_one_sentence(empty)
        assert "empty/rst_config.json: " in empty.err
        assert "PEFT" not in empty.err
        assert "rst export makes a delta" in pickle.err

"""Every Python block of the READMEs and of the docs runs, every `rst` command in them runs or at least parses.

A page's blocks run in order, in one namespace and one empty folder, as a reader would run them.
"""

import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.main import get_command

from rst.cli import app, main
from tests.docs.code_blocks import Block, code_blocks
from tests.docs.training_outcomes import TRAIN_AS_ALWAYS, check_outcomes, train_as_always, trains

UsageError: Any = typer.BadParameter.__base__  # click's, or that of the copy of click in newer typer

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").rglob("README.md"))]
SHELL = ("", "sh", "shell", "bash", "console")
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = [line.partition(":")[0] for line in MAKEFILE.splitlines() if ":" in line]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT's
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")  # torch's, on a machine without a GPU
@pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers")  # Lightning's
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")  # Lightning's
@pytest.mark.parametrize("page", [page for page in PAGES if code_blocks(page)], ids=name_of)
def test_the_blocks_of_a_page_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in code_blocks(page):
        for fixture in block.fixtures:
            namespace |= request.getfixturevalue(fixture)
        if block.language == "python":
            run_python(block, page, namespace)
        elif block.language in SHELL:
            run_shell(block, page)


def run_python(block: Block, page: Path, namespace: dict[str, Any]) -> None:
    written_out = block.padded().replace(TRAIN_AS_ALWAYS, "train_as_always(model, optimizer, images)")
    code = compile(written_out, str(page), "exec")  # an error is shown at its line of the page
    if block.not_run is None:
        if block.script:
            subprocess.run([sys.executable, "-c", block.text], check=True)
        namespace["train_as_always"] = train_as_always
        exec(code, namespace)
        if trains(block.text):
            check_outcomes(block.text, namespace)


def run_shell(block: Block, page: Path) -> None:
    for line in block.commands("rst"):
        words = shlex.split(line, comments=True)[1:]
        if block.not_run is None:
            assert main(words) == 0, f"{name_of(page)}: {line}"
        else:
            check_options(words)
    for line in block.commands("python -m"):
        module = shlex.split(line, comments=True)[2]
        assert find_spec(module), f"{name_of(page)}: {line}"
    for line in block.commands("make"):
        words = {*shlex.split(line.replace("&&", ""), comments=True)} - {"make"}
        settings = {word.partition("=")[0] for word in words if "=" in word}
        assert {word for word in words if "=" not in word} <= {*TARGETS}, line
        assert all(f"$({name})" in MAKEFILE for name in settings), line


def check_options(words: list[str]) -> None:
    """Parse a command without running it; an unknown command or option raises a usage error."""
    command: Any = get_command(app)
    context = command.make_context("rst", list(words))
    while hasattr(command, "resolve_command"):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, parent=context)


@pytest.mark.parametrize(
    "words", [["export", "--no-such-option", "model.ckpt"], ["no-such-command"], ["sync", "publish", "--into", "x"]]
)
def test_parsing_alone_refuses_what_does_not_exist(words: list[str]) -> None:
    with pytest.raises(UsageError):
        check_options(words)

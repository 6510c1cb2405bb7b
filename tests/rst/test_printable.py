"""Names, paths and revisions from files are shown without what steers a terminal, ends a line or a Markdown span."""

import ast
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
from torch import Tensor

import rst as package
from rst import RSTError, SparseDelta, export
from rst.cli import app, main
from rst.delta.sparse_delta import BaseIdentity
from rst.errors import RSTWarning
from rst.live.adapter_folder import write_adapter
from rst.live.model_card import model_card
from rst.printable import markdown_code, printable, yaml_string

CLI = Path(package.__file__).parent / "cli"
HOSTILE = "\x1b[2J\x1b]0;owned\x07\u202e\u2028\n\r\x9b\x7f`|<b>\u200b"
NAME = f"layer{HOSTILE}.weight"


def is_safe(text: str) -> bool:
    """Whether there is nothing but line breaks that no `isprintable` character is."""
    return all(char.isprintable() for char in text.replace("\n", ""))


def state(value: float) -> dict[str, Tensor]:
    return {NAME: torch.full((3,), value), f"{HOSTILE}head": torch.full((2,), value)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base, tuned weights, and deltas, whose names and whose files' names are hostile."""
    monkeypatch.chdir(tmp_path)
    torch.save(state(0.0), tmp_path / f"base{HOSTILE}.pt")
    torch.save(state(1.0), tmp_path / f"tuned{HOSTILE}.pt")
    delta = export(state(0.0), state(1.0))
    identity = BaseIdentity(f"org/base{HOSTILE}", f"main{HOSTILE}", 5)
    hostile = SparseDelta(delta.parameters, {}, base=identity, config={"threshold": 0.5, f"x{HOSTILE}": HOSTILE})
    hostile.save(tmp_path / f"d{HOSTILE}.safetensors")
    (tmp_path / f"bad{HOSTILE}.safetensors").write_bytes(b"no")
    return tmp_path


BASE, TUNED, DELTA, BAD = (f"{name}{HOSTILE}" for name in ("base", "tuned", "d", "bad"))
BASE, TUNED, DELTA, BAD = f"{BASE}.pt", f"{TUNED}.pt", f"{DELTA}.safetensors", f"{BAD}.safetensors"
OUT = f"out{HOSTILE}"
RUNS: dict[str, list[list[str]]] = {
    "export": [
        ["export", "--base", BASE, TUNED, "-o", f"{OUT}.safetensors"],
        ["export", "--base", BASE, BASE, "-o", f"{OUT}.safetensors"],
        ["export", "--base", BASE, TUNED, "-o", f"{OUT}2.safetensors", "--exclude", HOSTILE],
        ["export", TUNED],
    ],
    "tau": [["tau", BASE, TUNED], ["tau", BASE, TUNED, "--html", f"{OUT}.html"], ["tau", BASE, BAD]],
    "merge": [
        ["merge", BASE, DELTA, "-o", f"{OUT}.pt"],
        ["merge", BASE, DELTA, "-o", f"{OUT}.pt"],
        ["merge", TUNED, DELTA, "--dry-run"],
        ["merge", BASE, DELTA, "-o", f"no{HOSTILE}/x.pt"],
    ],
    "inspect": [["inspect", DELTA], ["inspect", DELTA, "--html", f"{OUT}.html"], ["inspect", BAD]],
    "verify": [["verify", DELTA], ["verify", DELTA, "--base", BASE], ["verify", DELTA, "--base", BAD], ["verify", BAD]],
    "sign": [["sign", DELTA, "--key", BAD], ["sign", f"no{HOSTILE}", "--key", BAD]],
    "convert": [
        ["convert", DELTA, f"{OUT}.safetensors", "--encoding", "packed"],
        ["convert", DELTA, f"{OUT}.safetensors", "--to", "task-vector", "--partial"],
        ["convert", BAD, f"{OUT}2.safetensors"],
    ],
    "diff": [["diff", DELTA, DELTA], ["diff", DELTA, BAD]],
    "combine": [
        ["combine", DELTA, DELTA, "--weights", "1", "1", "-o", f"{OUT}.safetensors"],
        ["combine", DELTA, BAD, "--weights", "1", "1", "-o", f"{OUT}2.safetensors"],
    ],
    "sync": [
        ["sync", "publish", f"c{HOSTILE}", BASE],
        ["sync", "publish", f"c{HOSTILE}", TUNED],
        ["sync", "follow", f"c{HOSTILE}", "--into", f"{OUT}.safetensors"],
        ["sync", "verify", f"c{HOSTILE}"],
        ["sync", "prune", f"c{HOSTILE}"],
        ["sync", "verify", BAD],
    ],
    "doctor": [["doctor", HOSTILE]],
}


def commands() -> set[str]:
    return set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", sorted(commands()))
@pytest.mark.parametrize("as_json", [False, True])
def test_no_command_prints_what_a_file_is_called_as_it_is(
    folder: Path, capfd: pytest.CaptureFixture[str], command: str, as_json: bool
) -> None:
    shown = 0
    for words in RUNS[command]:
        main([*words, *(["--json"] if as_json else [])])
        printed = capfd.readouterr()
        assert is_safe(printed.out), (words, printed.out)
        assert is_safe(printed.err), (words, printed.err)
        shown += ("\\x1b" in printed.out + printed.err) or ("\\u001b" in printed.out)
    assert shown, "none of these prints a hostile name, so nothing was tested"
    for page in folder.glob("*.html"):
        assert is_safe(page.read_text(encoding="utf-8"))
        assert "<b>" not in page.read_text(encoding="utf-8")


def test_commands_print_by_the_console_alone() -> None:
    """`say` and its neighbours escape; a bare `print` would not."""
    bare = []
    for path in CLI.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            called = node.func if isinstance(node, ast.Call) else None
            name = getattr(called, "attr", getattr(called, "id", ""))
            if name in ("print", "echo", "secho") and path.name not in ("console.py", "__init__.py"):
                bare.append(f"{path.name}:{called.lineno}")  # type: ignore[union-attr]
    assert not bare


def test_a_model_card_holds_names_as_code_and_its_front_matter_as_strings(folder: Path) -> None:
    yaml = pytest.importorskip("yaml")
    delta = SparseDelta.load(folder / DELTA)
    write_adapter(folder / "adapter", delta)
    for card in (model_card(delta, 1), (folder / "adapter" / "README.md").read_text()):
        assert is_safe(card)
        _, front, text = card.split("---\n", 2)
        found: dict[str, Any] = yaml.safe_load(front)
        assert found["base_model"] == printable(f"org/base{HOSTILE}")
        assert found.keys() == {"library_name", "base_model", "base_model_relation", "tags"}
        assert markdown_code(NAME) in text
        assert all(row.replace("\\|", "").count("|") == 5 for row in text.splitlines() if row.startswith("|"))


@pytest.mark.parametrize("text", ["", " ", "`", "a`", "``a`", "x|y", "\n---\nlicense: mit", '"', "\\", "😀", "\ud800"])
def test_nothing_ends_a_code_span_or_a_string_of_yaml(text: str) -> None:
    yaml = pytest.importorskip("yaml")
    assert yaml.safe_load(f"a: {yaml_string(text)}") == {"a": printable(text)}
    span = markdown_code(text)
    fence = span[: len(span) - len(span.lstrip("`"))]
    assert span.endswith(fence)
    assert fence not in span[len(fence) : -len(fence)]


def test_errors_and_warnings_are_one_safe_line_and_keep_their_fields() -> None:
    error = RSTError(f"reason {HOSTILE}", file=f"f{HOSTILE}", parameter=NAME)
    assert is_safe(str(error))
    assert "\n" not in str(error)
    assert len(str(RSTError("reason", parameter="x" * 200_000))) < 5_000
    assert (error.file, error.parameter, error.reason) == (f"f{HOSTILE}", NAME, f"reason {HOSTILE}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.warn(f"about {HOSTILE}", RSTWarning, stacklevel=1)
    assert is_safe(str(caught[0].message))
    assert "\n" not in str(caught[0].message)


def test_a_summary_is_as_wide_as_a_screen_may_be() -> None:
    delta = export(
        {NAME: torch.zeros(3), "x" * 100_000: torch.zeros(2)}, {NAME: torch.ones(3), "x" * 100_000: torch.ones(2)}
    )
    text = delta.summary()
    assert is_safe(text)
    assert len(text) < 102_000

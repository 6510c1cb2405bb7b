"""Names across wrappers, and patterns as PEFT reads them."""

import pytest
import torch
from torch import nn

from rst.naming import canonical_names, matches, unwrap


@pytest.mark.parametrize(
    ("names", "plain"),
    [
        (["a.w", "b"], ["a.w", "b"]),
        (["module.a.w", "module.b"], ["a.w", "b"]),
        (["module.module.a"], ["a"]),
        (["_orig_mod.module.a", "_orig_mod.module.b"], ["a", "b"]),
        (["module._orig_mod.a"], ["a"]),
        (["layer._orig_mod.w"], ["layer.w"]),
        (["module.a", "b"], ["module.a", "b"]),  # a submodule that happens to be called so
    ],
)
def test_wrappers_leave_no_trace_in_names(names: list[str], plain: list[str]) -> None:
    assert list(canonical_names(names).values()) == plain


def test_unwrapping_finds_the_model_inside() -> None:
    inner = nn.Linear(1, 1)
    assert unwrap(torch.compile(nn.DataParallel(inner), backend="eager")) is inner
    assert unwrap(nn.DataParallel(torch.compile(inner, backend="eager"))) is inner


@pytest.mark.parametrize(
    ("name", "patterns", "expected"),
    [
        ("blocks.0.attn.weight", ["attn"], True),
        ("blocks.0.attn.weight", ["blocks.0"], True),
        ("blocks.0.attn.weight", ["tn"], False),
        ("blocks.0.attn.weight", ["attn.weight"], True),
        ("blocks.0.attn.weight", r".*attn.*", True),
        ("blocks.0.attn.weight", r"attn", False),
        ("blocks.0.attn.weight", r"blocks\.\d+", True),
        ("head", ["head"], True),
        ("head", None, False),
        ("head", [], False),
    ],
)
def test_patterns(name: str, patterns: list[str] | str | None, expected: bool) -> None:
    assert matches(name, patterns) is expected

"""What `import rst` costs and offers."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import rst

ROOT = Path(rst.__file__).parent
# Each line may import from itself and from the lines above it.
LAYERS = (
    ("version", "errors", "extras", "config", "schedule", "naming"),
    ("numerics",),
    ("files",),
    ("shards",),
    ("delta",),
    ("checkpoints",),
    ("operations",),
    ("training",),
    ("live",),
    ("mixed",),
    ("distributed",),
    ("sync", "interop", "report", "doctor"),
    ("cli",),
)


def test_import_loads_the_three_dependencies_and_nothing_heavier() -> None:
    heavy = "rich, typer, blake3, pcodec, transformers, torchvision, matplotlib, sklearn, pandas"
    code = (
        "import sys, rst; assert 'torch' not in sys.modules; from rst import *; "
        f"loaded = [name for name in '{heavy}'.split(', ') if name in sys.modules]; assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there_and_documented() -> None:
    for name in rst.__all__:
        assert getattr(rst, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        rst.nothing  # noqa: B018


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_on_load(file: Path) -> Iterator[str]:
    """The modules of `rst` that a file imports when it is loaded; those inside functions come later."""
    for statement in ast.parse(file.read_text()).body:
        if isinstance(statement, ast.ImportFrom) and statement.module and statement.module.split(".")[0] == "rst":
            for alias in statement.names:
                inner = f"{statement.module}.{alias.name}"
                is_module = (ROOT.parent / inner.replace(".", "/")).with_suffix(".py").exists()
                yield inner if is_module else statement.module


def test_imports_point_downwards() -> None:
    rank = {name: depth for depth, names in enumerate(LAYERS) for name in names}
    upwards = [
        f"{module_name(file)} imports {imported}"
        for file in sorted(ROOT.rglob("*.py"))
        if file.parent != ROOT or file.stem in rank
        for imported in imports_on_load(file)
        if rank[imported.split(".")[1]] > rank[module_name(file).split(".")[1]]
    ]
    assert not upwards, "\n".join(upwards)


def test_no_module_imports_itself_through_others() -> None:
    graph = {module_name(file): set(imports_on_load(file)) for file in ROOT.rglob("*.py")}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle

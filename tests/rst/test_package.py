"""What `import rst` costs and offers."""

import ast
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import rst

ROOT = Path(rst.__file__).parent
# Each line may import from itself and from the lines above it.
LAYERS = (
    ("version", "printable", "errors", "extras", "config", "schedule", "naming", "limited_pattern"),
    ("numerics",),
    ("files",),
    ("shards",),
    ("delta",),
    ("checkpoints",),
    ("operations",),
    ("training",),
    ("quantized",),
    ("live",),
    ("mixed",),
    ("distributed",),
    ("sync", "interop", "report", "doctor"),
    ("cli",),
)
# Methods that a user expects of a value, and whose work lies above it: imported in the method's body.
CONVENIENCES = {
    ("rst.delta.sparse_delta", "rst.delta.file"),  # save, load
    ("rst.delta.sparse_delta", "rst.delta.summary"),  # summary
    ("rst.delta.sparse_delta", "rst.live.apply"),  # prepare, apply
    ("rst.live.model", "rst.mixed.batch"),  # forward with adapter_names
    ("rst.config", "rst.delta.file"),  # from_pretrained
    ("rst.config", "rst.live.hub"),  # from_pretrained
    ("rst.config", "rst.live.adapter_folder"),  # save_pretrained
}
# Where the users of version 0.1 import from.
PUBLIC = {
    "rst": """AutoRSTModel BaseDigests BaseIdentity CheckpointError Comparison ConfigError Constant DeltaFormatError
        Linear NonFiniteError NotCarriedError Overlap ParameterDelta ParameterMismatchError PreparedDelta RSTConfig
        RSTError RSTModel ResidualSparseTrainer SparseDelta WrongBaseError __version__ combine compare convert export
        from_official from_peft get_rst_model merge mixed_forward open_checkpoint to_shira to_task_vector""",
    "rst.sync": """ChainConflictError ChainDamageError ChainError ChainGapError ChainOrderError ChainReport
        ChainStateError FolderStore Follower FsspecStore Link Pointer Pruned Published Publisher Store Update
        fingerprint_state link_of open_store prune read_pointer verify""",
    "rst.distributed": "PreparedShards apply_sharded export_sharded",
    "rst.interop.lightning": "RSTCallback",
    "rst.interop.official": "from_official",
    "rst.interop.peft_adapters": "from_peft",
    "rst.interop.publish_callback": "PublishCallback",
    "rst.interop.shira": "to_shira",
    "rst.interop.task_vector": "to_task_vector",
    "rst.interop.transformers": "RSTCallback",
    "rst.interop.vllm": "EnginePatches SparsePatch register to_engine_patches",
    "rst.interop.vllm_server": "VLLMServer",
    "rst.cli": "main",
}


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


def imports(file: Path) -> Iterator[str]:
    """The modules of `rst` that a file imports when it is loaded or in a function; not those for annotations alone."""
    tree = ast.parse(file.read_text())
    annotations = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    ]
    skipped = {id(node) for block in annotations for line in block.body for node in ast.walk(line)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in skipped and (node.module or "").split(".")[0] == "rst":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                is_module = (ROOT.parent / inner.replace(".", "/")).with_suffix(".py").exists()
                imported = inner if is_module else str(node.module)
                if (module_name(file), imported) not in CONVENIENCES:
                    yield imported


def test_imports_point_downwards() -> None:
    rank = {name: depth for depth, names in enumerate(LAYERS) for name in names}
    upwards = [
        f"{module_name(file)} imports {imported}"
        for file in sorted(ROOT.rglob("*.py"))
        if file.parent != ROOT or file.stem in rank
        for imported in imports(file)
        if rank[imported.split(".")[1]] > rank[module_name(file).split(".")[1]]
    ]
    assert not upwards, "\n".join(upwards)


def test_no_module_imports_itself_through_others() -> None:
    graph = {module_name(file): set(imports(file)) for file in ROOT.rglob("*.py")}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


SLOW = {"rst.interop.lightning": pytest.mark.slow}  # to import


@pytest.mark.parametrize("module", [pytest.param(name, marks=SLOW.get(name, ())) for name in PUBLIC])
def test_public_names_keep_their_import_paths(module: str) -> None:
    needs = {"publish_callback": "transformers", "lightning": "lightning", "transformers": "transformers"}
    if (name := module.rpartition(".")[2]) in needs:
        pytest.importorskip(needs[name])
    missing = [name for name in PUBLIC[module].split() if not hasattr(import_module(module), name)]
    assert not missing


def test_no_name_hides_a_module() -> None:
    """It would be the function or the module, by what was imported first."""
    for file in ROOT.rglob("__init__.py"):
        modules = {f"{module_name(file)}.{name}": name for _, name, _ in pkgutil.iter_modules([str(file.parent)])}
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                bound = {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                bound = {node.name: "a definition"}
            else:
                continue
            hidden = [name for name, what in bound.items() if name in modules.values() and modules.get(what) != name]
            assert not hidden, file

"""What `import cmkd` costs and offers."""

import pkgutil
import subprocess
import sys
from importlib import import_module

import cmkd


def test_importing_it_needs_torch_only():
    heavy = "open_clip, timm, transformers, torchvision, scipy, sklearn, rst"
    code = f"import sys, cmkd; print(set({heavy.split(', ')!r}) & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_every_public_name_is_there():
    assert all(hasattr(cmkd, name) for name in cmkd.__all__)
    assert len(set(cmkd.__all__)) == len(cmkd.__all__)


def test_no_name_hides_a_module():
    """`cmkd.eval_mode` would be the function or the module, by what was imported first."""
    for _, name, _ in pkgutil.walk_packages(cmkd.__path__, "cmkd."):
        module = import_module(name)
        package, _, last = name.rpartition(".")
        assert getattr(import_module(package), last) is module, name

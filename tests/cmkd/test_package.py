"""What `import cmkd` costs and offers."""

import subprocess
import sys

import cmkd


def test_importing_it_needs_torch_only():
    heavy = "open_clip, timm, transformers, torchvision, scipy, sklearn, rst"
    code = f"import sys, cmkd; print(set({heavy.split(', ')!r}) & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_every_public_name_is_there():
    assert all(hasattr(cmkd, name) for name in cmkd.__all__)
    assert len(set(cmkd.__all__)) == len(cmkd.__all__)

"""What `import rst` costs and offers."""

import subprocess
import sys

import pytest

import rst


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

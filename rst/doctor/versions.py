"""Versions of Python, this library, its requirements, and its optional extras."""

import platform
import re
from dataclasses import dataclass
from importlib import metadata

from rst.extras import DISTRIBUTION
from rst.version import __version__

_REQUIREMENT = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)(.*?)(?:;(.*))?$")
_EXTRA = re.compile(r"""extra\s*==\s*['"]([A-Za-z0-9._-]+)['"]""")
_HIDDEN = ("dev", "docs", "all")


@dataclass(frozen=True)
class Extra:
    """An optional extra: the packages it requires, each with the installed version or None.

    Attributes:
        name: name of the extra, as in `pip install "residual-sparse-training[name]"`.
        packages: name to version.
    """

    name: str
    packages: dict[str, str | None]

    @property
    def missing(self) -> list[str]:
        """Return the packages that are not installed."""
        return [name for name, version in self.packages.items() if version is None]


def core_versions() -> dict[str, str | None]:
    """Return the versions of Python, rst and every package that rst always needs."""
    required = {name: _version(name) for name, extra in _requirements() if extra is None}
    return {"python": platform.python_version(), "rst": __version__, **required}


def extras() -> list[Extra]:
    """Return the extras for users, in the order of the distribution's metadata."""
    found: dict[str, dict[str, str | None]] = {}
    for name, extra in _requirements():
        if extra is not None and extra not in _HIDDEN and name != DISTRIBUTION:
            found.setdefault(extra, {})[name] = _version(name)
    return [Extra(name, packages) for name, packages in found.items()]


def _requirements() -> list[tuple[str, str | None]]:
    """Return package names, each with the extra that requires it (None: always); empty if nothing is installed."""
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:  # run from a source folder
        return []
    requirements = []
    for line in lines:
        found = _REQUIREMENT.match(line)
        if found:
            extra = _EXTRA.search(found[3] or "")
            requirements.append((found[1], extra[1] if extra else None))
    return requirements


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None

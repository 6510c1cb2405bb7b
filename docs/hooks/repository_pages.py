"""Pages of the site that live elsewhere in the repository, at the same paths, with every file that they link to."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ENTRANCES = ("examples/README.md", "benchmarks/RESULTS.md", "CHANGELOG.md", "CONTRIBUTING.md")
_LINK = re.compile(r"\]\(([^)#:\s]+)[^)\s]*\)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the entrances and what is reached from them; a link to a folder or out of the site is mkdocs' to judge."""
    root = Path(config.config_file_path).parent
    for path in _reached(root):
        if files.get_file_from_path(path) is None:
            files.append(File.generated(config, path, abs_src_path=str(root / path)))
    return files


def _reached(root: Path) -> list[str]:
    waiting, found = list(ENTRANCES), dict[str, None]()
    while waiting:
        path = waiting.pop(0)
        if path in found:
            continue
        found[path] = None
        if path.endswith(".md"):
            waiting += _links(root, path)
    return list(found)


def _links(root: Path, page: str) -> list[str]:
    folder = (root / page).parent
    linked = [(folder / link).resolve() for link in _LINK.findall((root / page).read_text(encoding="utf-8"))]
    return [path.relative_to(root).as_posix() for path in linked if path.is_file() and path.is_relative_to(root)]

"""Pages of the site that live elsewhere in the repository, at the same paths, with every file that they link to.

Links are written as they hold in the repository, so that they work there too; for the site, where the pages of `docs/`
are at the top, they are turned.
"""

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ENTRANCES = ("examples/README.md", "benchmarks/RESULTS.md", "CHANGELOG.md", "CONTRIBUTING.md")
_LINK = re.compile(r"\]\(([^)#:\s]+)([^)\s]*)\)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the entrances and what is reached from them; a link to a folder or out of the site is mkdocs' to judge."""
    root = Path(config.config_file_path).parent
    for path in _reached(root, Path(config.docs_dir)):
        if files.get_file_from_path(path) is None:
            files.append(File.generated(config, path, abs_src_path=str(root / path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that hold in the repository into those of the site; others are left as they are."""
    root, docs = Path(config.config_file_path).parent, Path(config.docs_dir)
    own = docs / page.file.src_uri
    here = own if own.is_file() else root / page.file.src_uri

    def turn(found: re.Match[str]) -> str:
        target = (here.parent / found[1]).resolve()
        if not (target.is_file() and target.is_relative_to(root)):
            return found[0]
        there = target.relative_to(docs if target.is_relative_to(docs) else root).as_posix()
        return f"]({os.path.relpath(there, Path(page.file.src_uri).parent)}{found[2]})"

    return _LINK.sub(turn, markdown)


def _reached(root: Path, docs: Path) -> list[str]:
    waiting, found = list(ENTRANCES), dict[str, None]()
    while waiting:
        path = waiting.pop(0)
        if path in found:
            continue
        found[path] = None
        if path.endswith(".md"):
            waiting += [link for link in _links(root, path) if not (root / link).is_relative_to(docs)]
    return list(found)


def _links(root: Path, page: str) -> list[str]:
    folder = (root / page).parent
    linked = [(folder / link).resolve() for link, _ in _LINK.findall((root / page).read_text(encoding="utf-8"))]
    return [path.relative_to(root).as_posix() for path in linked if path.is_file() and path.is_relative_to(root)]

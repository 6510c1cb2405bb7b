"""The notebook as a page, with the outputs that it was saved with."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

NOTEBOOK, PAGE, PICTURES = "tutorial.ipynb", "notebook.md", "notebook_files"


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the page and its pictures."""
    exporter = MarkdownExporter()
    resources = {"output_files_dir": PICTURES}
    text, resources = exporter.from_filename(str(Path(config.docs_dir) / NOTEBOOK), resources=resources)
    files.append(File.generated(config, PAGE, content=text))
    for path, picture in resources["outputs"].items():
        files.append(File.generated(config, path, content=picture))
    return files

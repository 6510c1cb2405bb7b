"""The options of `rst`, written into the page of the command line by typer at every build."""

import subprocess
import sys

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

PAGE, MARK = "reference/command-line.md", "<!-- commands -->"


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the commands where the page has its mark."""
    if page.file.src_uri != PAGE:
        return markdown
    return markdown.replace(MARK, commands())


def commands() -> str:
    """Every command, argument and option in Markdown, without the heading of the whole."""
    words = [sys.executable, "-m", "typer", "rst.cli", "utils", "docs", "--name", "rst"]
    text = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    # typer turns rich's markup into HTML everywhere but in a command's last line
    return text.partition("\n")[2].replace("[bold]", "`").replace("[/bold]", "`")

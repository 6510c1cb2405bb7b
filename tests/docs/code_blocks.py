"""Fenced code blocks of a Markdown page, and what the comments before them say about running them.

Three comments, which readers do not see, are understood right before a block:

    <!-- fixture: NAME -->      the names that the fixture NAME of conftest.py returns are put at the block's disposal
    <!-- not run: REASON -->    the block is only parsed
    <!-- script -->             the block is complete: it also runs in a process of its own, before it runs here
"""

import re
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

_COMMENT = re.compile(r"<!-- (fixture|not run|script)(?:: (.+?))? -->")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        language: the word after the fence, such as "python"; empty if there is none.
        text: what is in it.
        line: number of its first line in the page.
        fixtures: names of the fixtures it asks for.
        not_run: the reason why it is not run; None if it is.
        script: whether it is a complete script.
    """

    language: str
    text: str
    line: int
    fixtures: tuple[str, ...] = ()
    not_run: str | None = None
    script: bool = False

    def padded(self) -> str:
        """The text below as many empty lines as make its line numbers those of the page."""
        return "\n" * (self.line - 1) + self.text

    def commands(self, program: str) -> list[str]:
        """The lines that call `program`; a line that ends in a backslash goes on in the next."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line for line in lines if line.startswith(f"{program} ")]


def code_blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    blocks: list[Block] = []
    comments: dict[str, str] = {}
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type == "html_block":
            comments |= dict(_COMMENT.findall(token.content))
        elif token.type == "fence" and token.map:
            fixtures = tuple(name.strip() for name in comments.pop("fixture", "").split(",") if name.strip())
            line = token.map[0] + 2  # the fence's own line comes before, and lines are counted from 1
            not_run, script = comments.pop("not run", None), comments.pop("script", None) is not None
            blocks.append(Block(token.info.strip(), token.content, line, fixtures, not_run, script))
        elif token.type != "fence":
            comments.clear()
    return blocks

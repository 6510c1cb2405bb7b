"""Untrusted text, made safe to show on a terminal, in Markdown and in YAML: names and paths may hold anything."""

import json
import re

_LONGEST = 2000  # characters; no file system has longer names


def printable(text: str) -> str:
    """Escape what could steer a terminal, end a line, or turn the order of reading round.

    >>> printable("layer\\x1b[2J")
    'layer\\\\x1b[2J'
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def in_one_line(sentence: str) -> str:
    """The same of a sentence, whose own line breaks become spaces: what other libraries say often has some."""
    return shortened(printable(" ".join(sentence.splitlines())))


def shortened(text: str) -> str:
    """The beginning and the end of what names in files have made immensely long."""
    if len(text) <= _LONGEST:
        return text
    return f"{text[: _LONGEST // 2]} ... ({len(text):,} characters) ... {text[-_LONGEST // 2 :]}"


def markdown_code(text: str) -> str:
    """A code span of Markdown, also in a table, where nothing in the text ends it or is taken for HTML.

    >>> markdown_code("a`b|c")
    '``a`b\\\\|c``'
    """
    shown = printable(text).replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    space = " " if shown.startswith("`") or shown.endswith("`") or not shown.strip() else ""
    return f"{fence}{space}{shown}{space}{fence}"


def yaml_string(text: str) -> str:
    """A string of YAML, quoted so that nothing in the text ends it.

    >>> yaml_string('x"\\nlicense: mit')
    '"x\\\\"\\\\\\\\nlicense: mit"'
    """
    return json.dumps(printable(text), ensure_ascii=False)

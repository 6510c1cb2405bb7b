"""Escapes for untrusted text, such as names and paths, in terminals, Markdown and YAML."""

import json
import re

_LONGEST = 2000  # characters; no file system has longer names


def printable(text: str) -> str:
    """Escape characters that could control a terminal, end a line, or reverse the reading order.

    >>> printable("layer\\x1b[2J")
    'layer\\\\x1b[2J'
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def in_one_line(sentence: str) -> str:
    """Do the same for a sentence, and turn line breaks, frequent in messages of other libraries, into spaces."""
    return shortened(printable(" ".join(sentence.splitlines())))


def shortened(text: str) -> str:
    """Return the beginning and the end of a text that names in files have made extremely long."""
    if len(text) <= _LONGEST:
        return text
    return f"{text[: _LONGEST // 2]} ... ({len(text):,} characters) ... {text[-_LONGEST // 2 :]}"


def markdown_code(text: str) -> str:
    """Return a Markdown code span, valid in tables, that the text cannot end and whose content is not read as HTML.

    >>> markdown_code("a`b|c")
    '``a`b\\\\|c``'
    """
    shown = printable(text).replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    space = " " if shown.startswith("`") or shown.endswith("`") or not shown.strip() else ""
    return f"{fence}{space}{shown}{space}{fence}"


def yaml_string(text: str) -> str:
    """Return a quoted YAML string that the text cannot end.

    >>> yaml_string('x"\\nlicense: mit')
    '"x\\\\"\\\\\\\\nlicense: mit"'
    """
    return json.dumps(printable(text), ensure_ascii=False)

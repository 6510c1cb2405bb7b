"""Untrusted text, made safe to show."""


def printable(text: str) -> str:
    """Escape what could steer a terminal or reorder a line; names in a delta are untrusted.

    >>> printable("layer\\x1b[2J")
    'layer\\\\x1b[2J'
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)

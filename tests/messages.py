"""What an error has to say, without pinning its sentences: the names and numbers that a reader needs."""

import re


def names(*facts: object) -> str:
    """Pattern for `pytest.raises(match=...)`: the message holds each of these whole, in any order, among any words.

    A number is not found inside a longer one, nor a name inside a longer name: 3 is not in 13, 3.5 or "w3".
    """
    return "(?s)" + "".join(rf"(?=.*(?<!\w)(?<!\d\.){re.escape(str(fact))}(?!\w|\.\d))" for fact in facts)

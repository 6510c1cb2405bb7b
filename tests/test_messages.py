"""`names` finds whole facts in any order, and nothing less."""

import re

from tests.messages import names


def test_facts_are_found_whole_and_in_any_order():
    message = 'head.weight (2, 3):\nwanted 13 numbers, got 3.5 of float32, "a_b"'
    for facts in [("weight", (2, 3)), (13, 3.5, "head.weight"), ("float32", "a_b", 13)]:
        assert re.search(names(*facts), message), facts
    for fact in (1, 5, "float", "a", (2, 33), 14):
        assert not re.search(names(fact, "weight"), message), fact

"""What a refusal says: its class, the file and the parameter it is about, and the numbers and names in its reason."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from rst import RSTError


@contextmanager
def refused(
    error: type[RSTError], *words: object, file: object = None, parameter: str | None = None
) -> Iterator[pytest.ExceptionInfo[RSTError]]:
    """Expect an error of exactly this class, about `parameter`, about a file whose path ends so, with these words."""
    with pytest.raises(error) as caught:
        yield caught
    found = caught.value
    assert type(found) is error
    assert found.parameter == parameter, str(found)
    assert file is None or str(found.file).endswith(str(file)), str(found)
    for word in words:
        assert str(word) in found.reason, str(found)

"""How tests look at a refusal: by the error's class, its fields, and the names and numbers in its text."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rst import RSTError


@contextmanager
def refused(
    kind: type[RSTError], *shown: object, file: object = None, parameter: object = None
) -> Iterator[pytest.ExceptionInfo[RSTError]]:
    """Expect an error of this very class about `parameter` (None: about none) that shows all of `shown`.

    `file`, by its whole path or the name alone, is compared where it is given.
    """
    with pytest.raises(kind) as caught:
        yield caught
    error = caught.value
    assert type(error) is kind
    assert file is None or (error.file and str(file) in (error.file, Path(error.file).name)), error.file
    assert error.parameter == parameter, str(error)
    for text in shown:
        assert str(text) in error.reason, str(error)

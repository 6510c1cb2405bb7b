"""The errors that this library raises on purpose, each in one sentence that names file, parameter and numbers."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


class RSTError(Exception):
    """Base class. Catch this to catch everything the library refuses.

    Its text is `file: parameter: reason`, without what does not apply.

    Attributes:
        reason: what happened, with the numbers, and what to do.
        file: the file, folder or address that it is about, or None.
        parameter: the name of the parameter or buffer that it is about, or None.
    """

    def __init__(
        self, reason: str, *, file: "str | os.PathLike[str] | None" = None, parameter: str | None = None
    ) -> None:
        """Keep what the error is about; none of it is made safe for a terminal here."""
        super().__init__(reason)
        self.reason = reason
        self.file = None if file is None else str(file)
        self.parameter = parameter

    def __str__(self) -> str:
        """Compose the sentence."""
        return ": ".join(part for part in (self.file, self.parameter, self.reason) if part is not None)


@contextmanager
def naming_file(file: "str | os.PathLike[str] | None") -> Iterator[None]:
    """Have errors from within say which file they are about, unless they say so themselves."""
    try:
        yield
    except RSTError as error:
        error.file = error.file or (None if file is None else str(file))
        raise


class RSTWarning(UserWarning):
    """Something is likely not what was meant; the text has the numbers and what to change. Nothing is refused."""


class ConfigError(RSTError):
    """A setting is out of range, or a pattern matches nothing."""


class CheckpointError(RSTError):
    """A checkpoint is missing, unreadable, or holds no weights."""


class DeltaFormatError(RSTError):
    """A delta file is truncated, altered, hostile, or of an unknown version."""


class ParameterMismatchError(RSTError):
    """Names, shapes or dtypes of two sets of weights do not fit together."""


class WrongBaseError(RSTError):
    """The base weights are not those that the delta was made from."""


class NonFiniteError(RSTError):
    """NaN where a weight should be."""


class NotCarriedError(RSTError):
    """Another format has no place for parts of a delta."""

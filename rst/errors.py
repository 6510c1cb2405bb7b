"""The errors that this library raises, each with a message that names the file, the parameter and the numbers."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from rst.printable import in_one_line, printable, shortened


class RSTError(Exception):
    """Base class of all errors of this library.

    Its text is `file: parameter: reason`, without the parts that do not apply, in one line that is safe to print: names
    in files may contain terminal control sequences. The attributes hold them unchanged.

    Attributes:
        reason: what happened, with the numbers, and what to do.
        file: the file, folder or address that it is about, or None.
        parameter: the name of the parameter or buffer that it is about, or None.
    """

    def __init__(
        self, reason: str, *, file: "str | os.PathLike[str] | None" = None, parameter: str | None = None
    ) -> None:
        """Store the reason and what the error is about."""
        super().__init__(reason)
        self.reason = reason
        self.file = None if file is None else str(file)
        self.parameter = parameter

    def __str__(self) -> str:
        """Return the message as one printable line."""
        about = [shortened(printable(part)) for part in (self.file, self.parameter) if part is not None]
        return ": ".join([*about, in_one_line(self.reason)])


@contextmanager
def naming_file(file: "str | os.PathLike[str] | None") -> Iterator[None]:
    """Make errors raised within name this file, unless they name one themselves."""
    try:
        yield
    except RSTError as error:
        error.file = error.file or (None if file is None else str(file))
        raise


class RSTWarning(UserWarning):
    """A result is probably not what you intended; the text has the numbers and what to change.

    Like an error's, its text is one line that is safe to print.
    """

    def __str__(self) -> str:
        """Return the message as one printable line."""
        return in_one_line(super().__str__())


class ConfigError(RSTError):
    """A setting is out of range, or a pattern matches nothing."""


class CheckpointError(RSTError):
    """A checkpoint is missing, unreadable, or holds no weights."""


class DeltaFormatError(RSTError):
    """A delta file is truncated, altered, malicious, or of an unknown version."""


class ParameterMismatchError(RSTError):
    """Names, shapes or dtypes of two sets of weights do not fit together."""


class WrongBaseError(RSTError):
    """The base weights are not those that the delta was made from."""


class NonFiniteError(RSTError):
    """A weight is NaN."""


class SignatureError(RSTError):
    """An adapter is not signed, is signed by none of the trusted keys, or was changed since."""


class NotCarriedError(RSTError):
    """Another format cannot hold parts of a delta."""

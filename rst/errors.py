"""The errors that this library raises on purpose, each in one sentence that names file, parameter and numbers."""


class RSTError(Exception):
    """Base class. Catch this to catch everything the library refuses."""


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

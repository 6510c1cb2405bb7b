"""Errors of weight sync: what can be wrong with a chain of deltas."""

from rst.errors import RSTError


class ChainError(RSTError):
    """Base class of the errors of weight sync."""


class ChainGapError(ChainError):
    """A step, an anchor, or the whole chain is missing from the store."""


class ChainOrderError(ChainError):
    """A delta belongs to another chain, or is not the next step."""


class ChainDamageError(ChainError):
    """A file of the chain is truncated, altered, or has an unknown version."""


class ChainStateError(ChainError):
    """Weights do not have the state that the chain records."""


class ChainConflictError(ChainError):
    """Another publisher has advanced the chain."""

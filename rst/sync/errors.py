"""What can be wrong with a chain of deltas."""

from rst.errors import RSTError


class ChainError(RSTError):
    """Base class of the errors of weight sync."""


class ChainGapError(ChainError):
    """A step, an anchor, or the whole chain is not in the store."""


class ChainOrderError(ChainError):
    """A delta is of another chain, or not the step that comes next."""


class ChainDamageError(ChainError):
    """A file of the chain is truncated, altered, or of an unknown version."""


class ChainStateError(ChainError):
    """Weights are not those that the chain says they are."""


class ChainConflictError(ChainError):
    """Another publisher has moved the chain on."""

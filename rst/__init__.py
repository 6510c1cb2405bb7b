"""Residual Sparse Training: train as always, ship 0.1 % of the model, merge it back bit for bit.

>>> from rst import ResidualSparseTrainer, RSTConfig
>>> trainer = ResidualSparseTrainer(model, RSTConfig(threshold=1e-6, modules_to_save=["head"]))
>>> trainer.attach(optimizer)
>>> ...  # train as always
>>> trainer.export().save("delta.safetensors")
"""

from rst.apply import AppliedDelta
from rst.checkpoints import open_checkpoint
from rst.config import RSTConfig
from rst.delta import BaseIdentity, SparseDelta
from rst.errors import (
    CheckpointError,
    ConfigError,
    DeltaFormatError,
    NonFiniteError,
    ParameterMismatchError,
    RSTError,
    WrongBaseError,
)
from rst.exporting import export
from rst.merging import merge
from rst.parameter_delta import BaseDigests, ParameterDelta
from rst.schedule import Constant, Linear
from rst.trainer import ResidualSparseTrainer
from rst.version import __version__

__all__ = [
    "AppliedDelta",
    "BaseDigests",
    "BaseIdentity",
    "CheckpointError",
    "ConfigError",
    "Constant",
    "DeltaFormatError",
    "Linear",
    "NonFiniteError",
    "ParameterDelta",
    "ParameterMismatchError",
    "RSTConfig",
    "RSTError",
    "ResidualSparseTrainer",
    "SparseDelta",
    "WrongBaseError",
    "__version__",
    "export",
    "merge",
    "open_checkpoint",
]

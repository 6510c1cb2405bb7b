"""Residual Sparse Training: train as always, ship 0.1 % of the model, merge it back bit for bit.

>>> from rst import ResidualSparseTrainer, RSTConfig
>>> trainer = ResidualSparseTrainer(model, RSTConfig(threshold=1e-6, modules_to_save=["head"]))
>>> trainer.attach(optimizer)
>>> ...  # train as always
>>> trainer.export().save("delta.safetensors")
"""

from typing import TYPE_CHECKING

from rst.version import __version__

if TYPE_CHECKING:
    from rst.apply import PreparedDelta
    from rst.checkpoints import open_checkpoint
    from rst.combination import combine
    from rst.comparison import Comparison, Overlap, compare
    from rst.config import RSTConfig
    from rst.conversion import convert
    from rst.delta import BaseIdentity, SparseDelta
    from rst.errors import (
        CheckpointError,
        ConfigError,
        DeltaFormatError,
        NonFiniteError,
        NotCarriedError,
        ParameterMismatchError,
        RSTError,
        WrongBaseError,
    )
    from rst.exporting import export
    from rst.interop.official import from_official
    from rst.interop.peft_adapters import from_peft
    from rst.interop.shira import to_shira
    from rst.interop.task_vector import to_task_vector
    from rst.merging import merge
    from rst.mixed_batch import mixed_forward
    from rst.model import RSTModel, get_rst_model
    from rst.parameter_delta import BaseDigests, ParameterDelta
    from rst.schedule import Constant, Linear
    from rst.trainer import ResidualSparseTrainer

# Loaded on first use, so that `rst --help` does not wait for torch.
_MODULE_OF = {
    "BaseDigests": "rst.parameter_delta",
    "BaseIdentity": "rst.delta",
    "CheckpointError": "rst.errors",
    "Comparison": "rst.comparison",
    "ConfigError": "rst.errors",
    "Constant": "rst.schedule",
    "DeltaFormatError": "rst.errors",
    "Linear": "rst.schedule",
    "NonFiniteError": "rst.errors",
    "NotCarriedError": "rst.errors",
    "Overlap": "rst.comparison",
    "ParameterDelta": "rst.parameter_delta",
    "ParameterMismatchError": "rst.errors",
    "PreparedDelta": "rst.apply",
    "RSTConfig": "rst.config",
    "RSTError": "rst.errors",
    "RSTModel": "rst.model",
    "ResidualSparseTrainer": "rst.trainer",
    "SparseDelta": "rst.delta",
    "WrongBaseError": "rst.errors",
    "combine": "rst.combination",
    "compare": "rst.comparison",
    "convert": "rst.conversion",
    "export": "rst.exporting",
    "from_official": "rst.interop.official",
    "from_peft": "rst.interop.peft_adapters",
    "get_rst_model": "rst.model",
    "merge": "rst.merging",
    "mixed_forward": "rst.mixed_batch",
    "open_checkpoint": "rst.checkpoints",
    "to_shira": "rst.interop.shira",
    "to_task_vector": "rst.interop.task_vector",
}
__all__ = [
    "BaseDigests",
    "BaseIdentity",
    "CheckpointError",
    "Comparison",
    "ConfigError",
    "Constant",
    "DeltaFormatError",
    "Linear",
    "NonFiniteError",
    "NotCarriedError",
    "Overlap",
    "ParameterDelta",
    "ParameterMismatchError",
    "PreparedDelta",
    "RSTConfig",
    "RSTError",
    "RSTModel",
    "ResidualSparseTrainer",
    "SparseDelta",
    "WrongBaseError",
    "__version__",
    "combine",
    "compare",
    "convert",
    "export",
    "from_official",
    "from_peft",
    "get_rst_model",
    "merge",
    "mixed_forward",
    "open_checkpoint",
    "to_shira",
    "to_task_vector",
]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import a public name on first use."""
        from importlib import import_module

        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)
        return value

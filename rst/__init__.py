"""Residual Sparse Training: train as always, ship 0.1 % of the model, merge it back bit for bit.

>>> from rst import ResidualSparseTrainer, RSTConfig
>>> trainer = ResidualSparseTrainer(model, RSTConfig(ratio=0.001, modules_to_save=["head"]))
>>> trainer.attach(optimizer)
>>> ...  # train as always
>>> trainer.export().save("delta.safetensors")
"""

from typing import TYPE_CHECKING

from rst.version import __version__

if TYPE_CHECKING:
    from rst.checkpoints.checkpoint import open_checkpoint
    from rst.config import RSTConfig
    from rst.delta.parameter_delta import BaseDigests, ParameterDelta
    from rst.delta.sparse_delta import BaseIdentity, SparseDelta
    from rst.errors import (
        CheckpointError,
        ConfigError,
        DeltaFormatError,
        NonFiniteError,
        NotCarriedError,
        ParameterMismatchError,
        RSTError,
        RSTWarning,
        SignatureError,
        WrongBaseError,
    )
    from rst.interop.official import from_official
    from rst.interop.peft_adapters import from_peft
    from rst.interop.shira import to_shira
    from rst.interop.task_vector import to_task_vector
    from rst.live.apply import PreparedDelta
    from rst.live.auto_model import AutoRSTModel
    from rst.live.model import RSTModel, get_rst_model
    from rst.mixed.batch import mixed_forward
    from rst.operations.combine import combine
    from rst.operations.compare import Comparison, Overlap, compare
    from rst.operations.convert import convert
    from rst.operations.export import export
    from rst.operations.merge import merge
    from rst.operations.merge_in_place import merge_in_place
    from rst.schedule import Constant, Geometric, Linear
    from rst.training.status import TrainingStatus
    from rst.training.support import Support
    from rst.training.trainer import ResidualSparseTrainer

# Loaded on first use, so that `rst --help` does not wait for torch.
_MODULE_OF = {
    "AutoRSTModel": "rst.live.auto_model",
    "BaseDigests": "rst.delta.parameter_delta",
    "BaseIdentity": "rst.delta.sparse_delta",
    "CheckpointError": "rst.errors",
    "Comparison": "rst.operations.compare",
    "ConfigError": "rst.errors",
    "Constant": "rst.schedule",
    "DeltaFormatError": "rst.errors",
    "Geometric": "rst.schedule",
    "Linear": "rst.schedule",
    "NonFiniteError": "rst.errors",
    "NotCarriedError": "rst.errors",
    "Overlap": "rst.operations.compare",
    "ParameterDelta": "rst.delta.parameter_delta",
    "ParameterMismatchError": "rst.errors",
    "PreparedDelta": "rst.live.apply",
    "RSTConfig": "rst.config",
    "RSTError": "rst.errors",
    "RSTModel": "rst.live.model",
    "RSTWarning": "rst.errors",
    "ResidualSparseTrainer": "rst.training.trainer",
    "SignatureError": "rst.errors",
    "SparseDelta": "rst.delta.sparse_delta",
    "Support": "rst.training.support",
    "TrainingStatus": "rst.training.status",
    "WrongBaseError": "rst.errors",
    "combine": "rst.operations.combine",
    "compare": "rst.operations.compare",
    "convert": "rst.operations.convert",
    "export": "rst.operations.export",
    "from_official": "rst.interop.official",
    "from_peft": "rst.interop.peft_adapters",
    "get_rst_model": "rst.live.model",
    "merge": "rst.operations.merge",
    "merge_in_place": "rst.operations.merge_in_place",
    "mixed_forward": "rst.mixed.batch",
    "open_checkpoint": "rst.checkpoints.checkpoint",
    "to_shira": "rst.interop.shira",
    "to_task_vector": "rst.interop.task_vector",
}
__all__ = [
    "AutoRSTModel",
    "BaseDigests",
    "BaseIdentity",
    "CheckpointError",
    "Comparison",
    "ConfigError",
    "Constant",
    "DeltaFormatError",
    "Geometric",
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
    "RSTWarning",
    "ResidualSparseTrainer",
    "SignatureError",
    "SparseDelta",
    "Support",
    "TrainingStatus",
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
    "merge_in_place",
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

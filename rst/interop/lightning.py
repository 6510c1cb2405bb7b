"""Residual Sparse Training in Lightning: a callback whose checkpoints resume and hold what `rst export` needs."""

import math
import os
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from torch import optim

from rst.config import RSTConfig
from rst.delta.sparse_delta import Encoding, SparseDelta
from rst.errors import ConfigError
from rst.extras import install_command
from rst.live.adapter_folder import write_adapter
from rst.naming import unwrap
from rst.training.optimizer_steps import show_averaged_weights
from rst.training.support_processes import leave_out_of_ddp
from rst.training.trainer import ResidualSparseTrainer

if TYPE_CHECKING or find_spec("lightning"):
    from lightning.pytorch import Callback, LightningModule, Trainer
else:  # the same library under its older name
    try:
        from pytorch_lightning import Callback, LightningModule, Trainer
    except ImportError as error:
        raise ImportError(f"rst.interop.lightning needs lightning; {install_command('lightning')}") from error

RECORD_KEY: Final = "rst"


class RSTCallback(Callback):
    """Eq. 17 after every optimiser step of a Lightning `Trainer`.

    >>> callback = RSTCallback(RSTConfig(ratio=0.001, modules_to_save=["head"]))
    >>> Trainer(callbacks=[callback]).fit(module, loader)  # or fit(module, loader, ckpt_path="last")
    >>> callback.save_pretrained("ar2cl/")

    w0 is what the `LightningModule` holds when fitting starts, and the names in the delta are its names. For the names
    of a network inside it, hand over that network's trainer:

    >>> callback = RSTCallback(ResidualSparseTrainer(module.network, config))

    `rst_share`, the share of weights that differ from w0, is logged beside the one asked for and the change at which
    the selection ends (`rst_target`, `rst_boundary`), each `log_every_n_steps` optimiser steps.

    Checkpoints carry w0 and the steps (but those that `save_weights_only` leaves out): `fit(ckpt_path=...)` continues
    bit for bit, and for a callback made from a configuration `rst export model.ckpt` needs no base. Gradient
    accumulation, mixed precision, manual optimisation and DDP need nothing more. Of several optimisers, the last of
    `configure_optimizers` is followed. FSDP and DeepSpeed cut parameters to pieces and are refused. A callback that
    freezes a backbone for a while (`BackboneFinetuning`) needs the trainer made before it does:
    `RSTCallback(ResidualSparseTrainer(module, config))`.
    """

    def __init__(self, rst: RSTConfig | ResidualSparseTrainer) -> None:
        """Store the settings, or an existing trainer, whose w0 is then the model's when it was created."""
        super().__init__()
        self._config = rst if isinstance(rst, RSTConfig) else None
        self._trainer = None if isinstance(rst, RSTConfig) else rst
        self._record: dict[str, Any] | None = None

    @property
    def trainer(self) -> ResidualSparseTrainer:
        """The trainer of the model. Raises `ConfigError` before there is one."""
        if self._trainer is None:
            raise ConfigError("the callback has no model yet; it gets one when fit() starts")
        return self._trainer

    def export(self) -> SparseDelta:
        """Export the current change: `ResidualSparseTrainer.export`, with its errors."""
        return self.trainer.export()

    def save_pretrained(self, save_directory: str | os.PathLike[str], *, encoding: Encoding = "coo") -> None:
        """Write the adapter as it is now, for `RSTModel.from_pretrained`.

        Raises:
            ConfigError: no model yet.
            NonFiniteError: a weight is NaN.
            OSError: the folder cannot be written.
        """
        write_adapter(save_directory, self.export(), encoding)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the record until the model is on its device."""
        self._record = checkpoint.get(RECORD_KEY)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Exclude a support's weights from DDP, which is about to wrap the model: their gradients go another way.

        Raises:
            ConfigError: nothing else is trained, so DDP would reject the model.
        """
        if self._trainer is None or self._trainer.config.select != "support":
            return
        kept = {id(weight) for weight in self._trainer.tracked.sparse.values()}
        names = [name for name, weight in pl_module.named_parameters() if id(weight) in kept]
        others = [weight for weight in pl_module.parameters() if weight.requires_grad and id(weight) not in kept]
        strategy = type(trainer.strategy).__name__
        if "DDP" in strategy and not others:
            raise ConfigError(
                f"{strategy} refuses a model without a parameter of its own to train, and the support's {len(names)} "
                "are none; name a small module in modules_to_save, a norm for one"
            )
        leave_out_of_ddp(pl_module, pl_module, names)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Track w0, or restore it from the checkpoint, and attach to the optimiser.

        Raises:
            ConfigError: the checkpoint to resume from has no record, the model is another one than before, there is no
                optimiser, or the strategy cuts parameters to pieces.
        """
        if trainer.ckpt_path and self._record is None:
            raise ConfigError(
                "was written without RSTCallback, so w0 is unknown; load its weights into the model before fit() to "
                "use them as w0",
                file=trainer.ckpt_path,
            )
        self._track(pl_module)
        if self._record is not None:
            self.trainer.load_state_dict(self._record)
            self._record = None
        if math.isfinite(steps := trainer.estimated_stepping_batches):
            self.trainer.expect_steps(int(steps))
        self.trainer.detach()  # left by a run that ended with an exception
        self.trainer.attach(_last_optimizer(trainer))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the share and the boundary at the trainer's logging interval."""
        every, steps = trainer.log_every_n_steps, self.trainer.steps  # type: ignore[attr-defined]  # set when it is made
        if every and steps and steps % every == 0:
            pl_module.log_dict(self.trainer.status().logged())

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add w0 and the steps to the checkpoint, where `rst export` finds them."""
        checkpoint[RECORD_KEY] = self.trainer.state_dict()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Detach from the optimiser; a schedule-free one then leaves its averaged weights in the model."""
        self.trainer.detach()
        for optimizer in trainer.optimizers:
            show_averaged_weights(optimizer)

    def _track(self, module: LightningModule) -> None:
        if self._config is None:
            return
        if self._trainer is None:
            self._trainer = ResidualSparseTrainer(module, self._config)
        elif self._trainer.model is not unwrap(module):
            raise ConfigError("fit() got another model than before; create another RSTCallback for it")


def _last_optimizer(trainer: Trainer) -> optim.Optimizer:
    strategy = type(trainer.strategy).__name__
    if "FSDP" in strategy or "DeepSpeed" in strategy:
        raise ConfigError(
            f"{strategy} shards the parameters, and RSTCallback cannot compare the shards with w0; "
            f"use FSDP2 in your own loop"
        )
    if not trainer.optimizers:
        raise ConfigError("configure_optimizers returned no optimiser to attach to")
    return trainer.optimizers[-1]

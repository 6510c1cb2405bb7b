"""Residual Sparse Training in `transformers.Trainer`: a callback, checkpoints that resume, an adapter at the end."""

import os
from pathlib import Path
from typing import Any

from torch import nn

from rst.checkpoints.checkpoint import RECORD_FILE
from rst.checkpoints.pickle_writer import write_pickle
from rst.checkpoints.trainer_record import read_trainer_record
from rst.checkpoints.unpickling import unpickle
from rst.config import RSTConfig
from rst.delta.sparse_delta import Encoding
from rst.errors import CheckpointError, ConfigError
from rst.extras import install_command
from rst.files.atomic import atomic_write
from rst.live.adapter_folder import write_adapter
from rst.live.model import RSTModel
from rst.naming import unwrap, wrappers
from rst.numerics.fingerprint import digest, digest_text
from rst.training.optimizer_steps import show_averaged_weights
from rst.training.tracking import live_tensors
from rst.training.trainer import ResidualSparseTrainer

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

    from rst.interop.accelerate_sharding import sharding_of
except ImportError as error:
    raise ImportError(f"rst.interop.transformers needs transformers; {install_command('peft')}") from error


class RSTCallback(TrainerCallback):
    """Eq. 17 after every optimiser step of a `Trainer`, and the adapter beside what it saves.

    >>> callback = RSTCallback(RSTConfig(ratio=0.001, modules_to_save=["classifier"]))
    >>> trainer = Trainer(model, args, train_dataset=dataset, callbacks=[callback])
    >>> trainer.train()  # or trainer.train(resume_from_checkpoint=True)
    >>> tuned = RSTModel.from_pretrained(another_base, args.output_dir)

    Or with an `RSTModel`, for its verbs: `Trainer` gets the model inside, as it treats only transformers' own classes
    as models to save and reads labels and columns from their signature.

    >>> model = get_rst_model(base, config)
    >>> Trainer(model.base_model, args, train_dataset=dataset, callbacks=[RSTCallback(model.trainer)]).train()

    w0 is what the model holds when the `Trainer` is made (with `model_init`, when it starts to train).

    - Each `checkpoint-N` has the whole model, as `Trainer` always writes it, and in `rst_trainer.pt` w0 and the steps,
      so that a resumed run continues bit for bit, even if the model was made with another random head, and
      `rst export checkpoint-N` needs no base. With `save_only_model`, which cannot be resumed, there is no such file.
      The folder is an adapter as well (`delta.safetensors` and so on) if its step was one of selection: with `every=1`
      always, with `every=0` never.
    - Each entry of the logs in training has `rst_share`, the share of weights that differ from w0, beside what is
      asked for and the change at which the selection ends (`rst_target`, `rst_boundary`), in `state.log_history` and
      on screen. Trackers named by `report_to` stand before callbacks; to have them report it, this one goes first:
      `trainer.remove_callback(callback)`, then `trainer.callback_handler.callbacks.insert(0, callback)`.
    - At the end the adapter is written to `output_dir`; after `load_best_model_at_end` that of the best checkpoint.
      `save_pretrained` writes it anywhere. `Trainer.save_model` writes the whole model, selected already.

    Gradient accumulation, bf16, fp16 and the processes of DDP need nothing more. FSDP and DeepSpeed, whether the
    `Trainer`'s arguments name them or accelerate's own configuration, cut parameters to pieces and are refused, and so
    are checkpoints in a hyperparameter search, whose place a callback is not told.
    """

    def __init__(self, rst: RSTConfig | ResidualSparseTrainer) -> None:
        """Store the settings, or an existing trainer, whose w0 is then the model's when it was created."""
        self._config = rst if isinstance(rst, RSTConfig) else rst.config
        self._own = isinstance(rst, RSTConfig)
        self._trainer = None if isinstance(rst, RSTConfig) else rst

    @property
    def trainer(self) -> ResidualSparseTrainer:
        """The trainer of the model. Raises `ConfigError` before there is one."""
        if self._trainer is None:
            raise ConfigError(
                "the callback has no model yet; it gets one when the Trainer is created or starts to train"
            )
        return self._trainer

    def save_pretrained(self, save_directory: str | os.PathLike[str], *, encoding: Encoding = "coo") -> None:
        """Write the adapter as it is now, for `RSTModel.from_pretrained`. It selects once more, as every export does.

        Raises:
            ConfigError: no model yet.
            NonFiniteError: a weight is NaN.
            OSError: the folder cannot be written.
        """
        write_adapter(save_directory, self.trainer.export(), encoding)

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Track w0, before a checkpoint is loaded and before the optimiser collects the trainable parameters.

        Raises:
            ConfigError: FSDP or DeepSpeed.
        """
        _check_whole(args)
        self._track(kwargs["model"])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attach to the optimiser, continuing from the checkpoint if the run is resumed.

        Raises:
            ConfigError: FSDP or DeepSpeed, another model than the one tracked, or a support whose gradients `Trainer`
                would not clip.
            CheckpointError: the run is resumed and its record is not found.
        """
        _check_whole(args)
        self._track(kwargs["model"])
        if self.trainer.config.select == "support" and args.max_grad_norm:
            raise ConfigError(
                f"max_grad_norm={args.max_grad_norm} clips the gradients of the model's parameters, which a support "
                f"does not keep; set max_grad_norm=0"
            )
        if state.global_step > 0:
            self._resume(args, state.global_step)
        self.trainer.expect_steps(state.max_steps)
        self.trainer.detach()  # left by a run that ended with an exception
        self.trainer.attach(kwargs["optimizer"])

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Clear the gradients of a support: `Trainer` clears only those of the model's own parameters."""
        if self.trainer.config.select == "support":
            kwargs["optimizer"].zero_grad()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add the record and the adapter to the checkpoint.

        Raises:
            ConfigError: a hyperparameter search, whose checkpoints are stored elsewhere.
        """
        if not args.should_save:
            return
        if state.is_hyper_param_search:
            raise ConfigError(
                'RSTCallback cannot follow the checkpoints of a hyperparameter search; set save_strategy="no"'
            )
        folder = _checkpoint_folder(args, state.global_step)
        if not args.save_only_model:
            _write_record(folder, self.trainer)
        every = self._config.every
        if every and self.trainer.steps % every == 0:  # this step has selected
            write_adapter(folder, self.trainer.export(select=False))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add the share and the boundary to an entry of the training log."""
        entries = [logs for logs in (kwargs.get("logs"), *state.log_history[-1:]) if logs is not None]
        if self._trainer is not None and any("loss" in logs for logs in entries):
            status = self._trainer.status().logged()
            for logs in entries:
                logs.update(status)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Select for the last time, and write the adapter to `output_dir`."""
        self.trainer.detach()
        if kwargs.get("optimizer") is not None:
            show_averaged_weights(kwargs["optimizer"])
        best = state.best_model_checkpoint if args.load_best_model_at_end else None
        if best is not None and (Path(best) / RECORD_FILE).is_file():
            record = _read_record(Path(best))  # its steps determine the tau that selected the best weights
            self.trainer.load_state_dict(record["trainer"])
        if args.should_save:
            self.save_pretrained(str(args.output_dir))
        else:
            self.trainer.select()

    def _track(self, model: nn.Module) -> None:
        if any(isinstance(layer, RSTModel) for layer in wrappers(model)):
            raise ConfigError(
                "Trainer saves an RSTModel without its adapter and does not find its label arguments; use "
                "Trainer(model.base_model, ..., callbacks=[RSTCallback(model.trainer)])"
            )
        if self._trainer is not None and self._trainer.model is unwrap(model):
            return
        if not self._own:
            raise ConfigError("the Trainer trains another model than the one that RSTCallback's trainer tracks")
        self._trainer = ResidualSparseTrainer(model, self._config)

    def _resume(self, args: TrainingArguments, step: int) -> None:
        # A callback does not receive the folder of train(resume_from_checkpoint=...); the weights identify it.
        folders = [Path(args.resume_from_checkpoint)] if args.resume_from_checkpoint else []
        folders.append(_checkpoint_folder(args, step))
        loaded = _digest(self.trainer.model)
        for folder in folders:
            if (folder / RECORD_FILE).is_file() and (record := _read_record(folder))["weights"] == loaded:
                self.trainer.load_state_dict(record["trainer"])
                return
        raise CheckpointError(
            f"resumed at step {step}, but {RECORD_FILE} with these weights is not in {', '.join(map(str, folders))}; "
            "set TrainingArguments(resume_from_checkpoint=...) to the folder that contains it"
        )


def _check_whole(args: TrainingArguments) -> None:
    if sharding := sharding_of(args):
        raise ConfigError(
            f"{sharding} shards the parameters, and RSTCallback cannot compare the shards with w0; "
            "docs/howto/distributed.md has FSDP2 in a loop of your own"
        )


def _checkpoint_folder(args: TrainingArguments, step: int) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{step}"


def _write_record(folder: Path, trainer: ResidualSparseTrainer) -> None:
    with atomic_write(folder / RECORD_FILE) as temporary:
        write_pickle({"weights": _digest(trainer.model), "trainer": trainer.state_dict()}, temporary)


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD_FILE
    try:
        record = {"weights": None, "trainer": None, **unpickle(path)}
        read_trainer_record(record["trainer"], str(path))
    except (TypeError, ConfigError) as error:
        raise CheckpointError(f"not the record of RSTCallback ({error})", file=path) from error
    return record


def _digest(model: nn.Module) -> str:
    return digest_text("\n".join(f"{name} {digest(tensor)}" for name, tensor in live_tensors(model).items()))

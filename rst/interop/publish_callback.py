"""Publishing a chain of `rst.sync` from `transformers.Trainer` and TRL's trainers, at a fixed interval of steps."""

import os
from collections.abc import Callable
from typing import Any

from rst.errors import ConfigError
from rst.extras import install_command
from rst.shards.blocks import is_sharded
from rst.sync.publisher import Published, Publisher
from rst.sync.store import Store

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

    from rst.interop.accelerate_sharding import sharding_of
except ImportError as error:
    raise ImportError(f"rst.interop.publish_callback needs transformers; {install_command('peft')}") from error


class PublishCallback(TrainerCallback):
    """Publish the model's weights during training.

    >>> publish = PublishCallback("/shared/chain", every=1, dtype=torch.bfloat16)
    >>> Trainer(model, args, train_dataset=dataset, callbacks=[publish]).train()

    The chain starts, or continues, when training does. With DDP the first process publishes; with FSDP2 all processes
    do, each its own part. The first FSDP flattens parameters and DeepSpeed hides them: both are rejected, whether the
    `Trainer`'s arguments or accelerate's own configuration select them.
    """

    def __init__(
        self,
        store: str | os.PathLike[str] | Store,
        *,
        every: int = 1,
        on_publish: Callable[[Published], object] | None = None,
        **settings: Any,
    ) -> None:
        """Store the settings.

        Args:
            store: as in `Publisher`.
            every: publish after this many optimiser steps, and once more at the end.
            on_publish: called after each publication, in the first process: to update an engine, for example.
            settings: settings of `Publisher`: `dtype`, `anchor_every`, `op` and so on.

        Raises:
            ConfigError: `every` is below 1.
        """
        if every < 1:
            raise ConfigError(f"every={every}: must be at least 1")
        self._store, self._every, self._settings, self._on_publish = store, every, settings, on_publish
        self._publisher: Publisher | None = None
        self._published = -1

    @property
    def publisher(self) -> Publisher | None:
        """The publisher; None before training, and in processes that do not publish."""
        return self._publisher

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the chain, or continue it.

        Raises:
            ConfigError: DeepSpeed, or the first FSDP.
            ChainError: as `Publisher`.
        """
        if (sharding := sharding_of(args)) in ("DeepSpeed", "FSDP"):
            does = "hides" if sharding == "DeepSpeed" else "flattens"
            raise ConfigError(
                f"{sharding} {does} the parameters, so PublishCallback cannot read them; use FSDP2: "
                "fsdp_config={'version': 2}, or accelerate launch --use_fsdp --fsdp_version 2"
            )
        model = kwargs["model"]
        if state.is_world_process_zero or any(is_sharded(weight) for weight in model.parameters()):
            self._publisher = Publisher(model, self._store, **self._settings)
            self._published = state.global_step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Publish, if a publication is due."""
        if state.global_step % self._every == 0:
            self._publish(state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Publish the changes of the last steps."""
        if self._published != state.global_step:
            self._publish(state)

    def _publish(self, state: TrainerState) -> None:
        if self._publisher is not None:
            published = self._publisher.publish()
            self._published = state.global_step
            if self._on_publish is not None and state.is_world_process_zero:
                self._on_publish(published)

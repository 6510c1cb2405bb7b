"""Residual Sparse Training: wrap a model, train it as always, export what is left of the change (Algorithm 1).

Read top to bottom and you have seen the method: remember w0; after every optimiser step put back what barely moved;
at the end store `w_sp = wt - w0`.
"""

from collections import ChainMap
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rst.checkpoints.coordinates import Coordinates
from rst.checkpoints.delta_in_module import in_module
from rst.checkpoints.nested_state import RECORD_VERSION, TRAINER_RECORD
from rst.checkpoints.trainer_record import TrainerRecord, read_trainer_record
from rst.checkpoints.transformers_files import coordinates_of
from rst.config import RSTConfig
from rst.delta.parameter_delta import Op, check_like
from rst.delta.sparse_delta import BaseIdentity, SparseDelta
from rst.errors import ConfigError
from rst.naming import unwrap
from rst.numerics.difference import count_changed
from rst.operations.extraction import Extraction
from rst.shards.blocks import like, local, locals_of
from rst.shards.layout import ShardLayout, find_layout
from rst.training.base_weights import BaseWeights
from rst.training.outcome import check_outcome, claim
from rst.training.projection import choose_projection
from rst.training.sampled_boundary import sampled_boundary
from rst.training.selection import FindBoundary, boundary, is_bias, keep_top_
from rst.training.tracking import TrackedTensors, live_tensors, track


class ResidualSparseTrainer:
    """Keeps a model close to its pretrained weights and exports the sparse difference.

    >>> trainer = ResidualSparseTrainer(model, RSTConfig(ratio=0.001, modules_to_save=["head"]))
    >>> trainer.attach(optimizer)
    >>> ...  # train as always
    >>> trainer.export().save("delta.safetensors")

    The model may be wrapped by `torch.compile` or `DataParallel`, before or after; tied weights count once. Parameters
    that the configuration neither targets nor saves whole are frozen.

    Of a model sharded by `fully_shard` or `parallelize_module` (DTensors) each process keeps and projects its own part;
    make the trainer after sharding, in every process, and export with `rst.distributed.export_sharded`.
    """

    def __init__(self, model: nn.Module, config: RSTConfig | None = None) -> None:
        """Remember the weights of `model`, which must be the pretrained ones, as w0.

        Raises:
            ConfigError: a pattern of the configuration matches nothing, or there is nothing to train.
            ParameterMismatchError: a parameter is complex, on the meta device, or sharded in a way not supported.
        """
        self.model = unwrap(model)
        self.config = config or RSTConfig()
        self._tracked = track(self.model, self.config)
        live = live_tensors(self.model)
        self._layout = find_layout(self.model, live)
        for name in self._tracked.frozen:
            live[name].requires_grad_(False)
        watched = {name: local(live[name]) for name in (*self._tracked.sparse, *self._tracked.buffers)}
        self._base = BaseWeights(watched, self.config.base_storage)
        self._project = choose_projection(list(locals_of(self._tracked.sparse).values()))
        self._find_boundary = _boundary_of(self._layout)
        self._identity = _identify(self.model)
        self._steps = 0
        self.suspended = False
        claim(self.model, self)
        self._hook: RemovableHandle | None = None

    @property
    def base(self) -> Mapping[str, Tensor]:
        """w0 of the sparsely trained parameters by name; of sharded ones this process' part."""
        return {name: self._base[name] for name in self._tracked.sparse}

    @property
    def tracked(self) -> TrackedTensors:
        """Which tensors are trained sparsely, stored whole, watched and frozen."""
        return self._tracked

    @property
    def identity(self) -> BaseIdentity:
        """The base model's name and revision, where known."""
        return self._identity

    @property
    def coordinates(self) -> Coordinates:
        """Where the model's weights lie in the checkpoint files of its base."""
        return coordinates_of(self.model)

    @property
    def layout(self) -> ShardLayout | None:
        """How the model is sharded; None if no tensor is a DTensor."""
        return self._layout

    @property
    def steps(self) -> int:
        """Optimiser steps seen so far."""
        return self._steps

    def expect_steps(self, total_steps: int) -> None:
        """Say how long the run is, if the configuration does not: the share falls over the first half of it."""
        if self.config.total_steps is None and total_steps > 0:
            self.config = replace(self.config, total_steps=total_steps)

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Call `step()` after every `optimizer.step()` that changes weights.

        A step that `GradScaler` skips for infinite gradients is not counted. With several optimisers attach the one
        that steps last.

        Raises:
            ConfigError: attached already, or the optimiser has none of the tracked parameters.
        """
        if self._hook:
            raise ConfigError("already attached; with several optimisers attach the one that steps last")
        while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
            optimizer = inner  # accelerate wraps the optimiser and steps the inner one
        self._check_optimizer(optimizer)
        # A bound method would be copied with the optimiser, and its trainer with it.
        self._hook = optimizer.register_step_post_hook(lambda stepped, *_: None if _skipped(stepped) else self.step())

    def detach(self) -> None:
        """Undo `attach`; without one, do nothing."""
        if self._hook:
            self._hook.remove()
        self._hook = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy is attached to no optimiser."""
        return {**self.__dict__, "_hook": None}

    def step(self) -> None:
        """Count one optimiser step and select, if it is the turn of one (`every`). `attach` calls this for you.

        Raises:
            ConfigError: the training is suspended, so the weights that were stepped are not its own.
        """
        if self.suspended:
            raise ConfigError("an optimiser stepped while the adapter in training is off; set_adapter turns it on")
        self._steps += 1
        if self.config.every and self._steps % self.config.every == 0:
            self.select(final=False)

    @torch.no_grad()
    def select(self, *, final: bool = True) -> None:
        """Put every weight that the configuration does not keep back to w0, bit for bit (Eq. 17).

        Args:
            final: as an export does: exactly the share that is to be reached. False, as after a step, keeps the share
                that the run is at, of large models about.

        Raises:
            ParameterMismatchError: a parameter changed its shape or dtype since the start.
            NonFiniteError: top-r selection met a NaN.
        """
        config, tuned = self.config, locals_of(self._tracked.sparse)
        base = self._base.on_device_of(tuned)
        progress = config.progress(self._steps)
        if config.select == "threshold":
            pairs = ((weight, base[name]) for name, weight in tuned.items())
            self._project(pairs, config.threshold_at(progress))
        elif config.select == "top":
            share = config.exported_ratio(progress) if final else config.ratio_at(progress)
            estimate = None if final or self._layout else sampled_boundary(tuned, base, share, step=self._steps)
            keep_top_(tuned, base, estimate or self._find_boundary(tuned, base, share), self._project)
        else:
            for name in (name for name in tuned if not is_bias(name)):
                tuned[name].copy_(base[name])

    def count_changed(self) -> int:
        """How many of the tracked weights differ from w0 now, in all processes; reads all of them once more."""
        tuned = locals_of(self._tracked.sparse)
        base = self._base.on_device_of(tuned)
        counts = {name: count_changed(base[name], weight) for name, weight in tuned.items()}
        return sum((self._layout.add_up(counts) if self._layout else counts).values())

    def export(self, op: Op = "add", *, select: bool = True) -> SparseDelta:
        """Select once more, then extract the sparse residuals (Eq. 16), changed buffers and modules saved whole.

        Afterwards the model equals base plus delta, bit for bit. Warns where next to nothing, or nearly everything, is
        kept, and where no step was seen (`RSTWarning`).

        Args:
            op: what to store: residuals, the tuned values ("replace") or steps, as in `ParameterDelta`.
            select: False stores what differs from w0 now and leaves the model as it is, as in the midst of a run.

        Raises:
            ConfigError: a frozen parameter has been made trainable, so its change is lost, or the model is sharded.
            NonFiniteError: a weight is NaN; the message names the parameter.
        """
        if self._layout:
            raise ConfigError("the model is sharded; every process calls rst.distributed.export_sharded(trainer)")
        live, base = self.read_for_export(select=select)
        tracked = self._tracked
        names = [*tracked.sparse, *tracked.buffers, *tracked.saved]
        coordinates = self.coordinates
        in_files = coordinates.files_of_all
        before: Mapping[str, Tensor] = ChainMap(base, live)  # type: ignore[arg-type]  # only read
        return Extraction(
            base=coordinates.to_files(before),
            tuned=coordinates.to_files(live),
            names=in_files(names),
            whole=set(in_files(tracked.saved)),
            buffers=set(in_files(name for name in names if not isinstance(live[name], nn.Parameter))),
            tied=coordinates.ties_in_files(tracked.tied),
            identity=self._identity,
            config=self.config.to_dict(),
            op=op,
            coordinates="checkpoint",
        ).run()

    def read_for_export(self, *, select: bool = True) -> tuple[dict[str, Tensor], Mapping[str, Tensor]]:
        """Check the model, select once more, and return its tensors and w0 by name, as `export` reads them.

        Raises:
            ConfigError: as `export`.
        """
        live = live_tensors(self.model)
        self._check_unchanged(live)
        if select:
            moved = self.count_changed()
            self.select()
            total = sum(weight.numel() for weight in self._tracked.sparse.values())
            changed = self.count_changed()
            check_outcome(self.config, steps=self._steps, changed=changed, total=total, moved=moved)
        return live, self._base.on_device_of(locals_of(live))

    def state_dict(self) -> dict[str, Any]:
        """Everything that resuming needs, w0 included, to be saved beside the model and the optimiser.

        `rst export` finds it under any key of a checkpoint and needs no other base. Of a sharded model it has DTensors,
        to be saved, and loaded into in place on any number of processes, by `torch.distributed.checkpoint`.
        """
        tracked, coordinates = self._tracked, self.coordinates
        base, buffers = self._recorded(tracked.sparse), self._recorded(tracked.buffers)
        saved = coordinates.files_of_all(tracked.saved)
        progress = self.config.progress(self._steps)
        tau = self.config.threshold_at(progress) if self.config.select == "threshold" else None
        return {
            "format": TRAINER_RECORD,
            "version": RECORD_VERSION,
            "steps": self._steps,
            "config": self.config.to_dict(),
            "threshold": tau,
            "base": base,
            "buffers": buffers,
            "saved": saved,
            "tied": coordinates.ties_in_files(tracked.tied),
            "places": coordinates.places([*base, *buffers, *saved]),
            "coordinates": "checkpoint",
            "identity": {"name": self._identity.name, "revision": self._identity.revision},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` left off, bit for bit, once the model and the optimiser are restored as well.

        Raises:
            ConfigError: not a trainer's state, or one of other tracked parameters.
            ParameterMismatchError: a parameter has another shape or dtype.
        """
        record = read_trainer_record(state)
        restored = self._restored(record)
        if different := sorted(restored.keys() ^ self._base.keys()):
            raise ConfigError(f"the state tracks other tensors: {len(different)} differ, first {different[0]}")
        for name, origin in self._base.items():
            check_like(name, restored[name], origin)
        for name, origin in self._base.items():
            origin.copy_(restored[name])
        self._steps = record.steps

    def _recorded(self, names: Iterable[str]) -> dict[str, Tensor]:
        """w0 of some of the model's tensors as those of the files; of a sharded model only the names are the files'."""
        live, files = live_tensors(self.model), self.coordinates
        if self._layout:
            own = {name: like(live[name], self._base[name]) for name in names}
            return {files.name_in_files(name): tensor for name, tensor in own.items()}
        before = files.to_files(ChainMap(self._base, live))  # type: ignore[arg-type]  # only read
        found = {name: before[name] for name in files.files_of_all(names)}
        return {name: tensor.contiguous() if files.is_moved(name) else tensor for name, tensor in found.items()}

    def _restored(self, record: TrainerRecord) -> dict[str, Tensor]:
        """w0 by the model's names, of sharded tensors this process' part."""
        stored = SparseDelta({}, dense=locals_of({**record.base, **record.buffers}), coordinates=record.coordinates)
        live = locals_of(live_tensors(self.model))
        own = in_module(stored, self.coordinates, ChainMap(self._base, live)).dense  # type: ignore[arg-type]
        return {
            name: tensor
            for name, tensor in own.items()
            if name in self._base or name in stored.dense or name not in live
        }

    def _check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if not any(id(parameter) in stepped for parameter in self._tracked.sparse.values()):
            count = len(self._tracked.sparse)
            raise ConfigError(f"the optimiser has none of the {count} tracked parameters; build it from this model")

    def _check_unchanged(self, live: Mapping[str, Tensor]) -> None:
        for name, parameter in self._tracked.sparse.items():
            if live.get(name) is not parameter:
                raise ConfigError(
                    "replaced since the trainer was made; wrap the model after changing it", parameter=name
                )
        for name in self._tracked.frozen:
            if live[name].requires_grad:
                raise ConfigError("made trainable after the trainer froze it, its change would be lost", parameter=name)


def _skipped(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a fused optimiser, which gets the gradient scaler's verdict, skipped inside its own step."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf.item())


def _boundary_of(layout: ShardLayout | None) -> FindBoundary:
    """How top-r % finds its boundary, where each process may have a part of the weights only."""
    if layout is None:
        return boundary
    from rst.training.sharded_selection import sharded_boundary

    return partial(sharded_boundary, layout)


def _identify(model: nn.Module) -> BaseIdentity:
    """Name and revision that transformers keeps on its models; unknown for others."""
    revision = getattr(getattr(model, "config", None), "_commit_hash", None)
    return BaseIdentity(name=getattr(model, "name_or_path", None) or None, revision=revision)

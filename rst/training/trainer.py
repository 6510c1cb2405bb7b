"""Residual Sparse Training: wrap a model, train it as always, export the remaining change (Algorithm 1).

This file shows the method from top to bottom: remember w0; after every optimiser step, reset the weights that barely
moved; at the end, store `w_sp = wt - w0`.
"""

from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rst.checkpoints.coordinates import Coordinates
from rst.checkpoints.delta_in_module import in_module
from rst.checkpoints.model_config import config_of_module
from rst.checkpoints.nested_state import RECORD_VERSION, TRAINER_RECORD
from rst.checkpoints.not_in_base import warn_of_what_base_lacks
from rst.checkpoints.trainer_record import TrainerRecord, read_trainer_record
from rst.checkpoints.transformers_files import coordinates_of
from rst.config import RSTConfig
from rst.delta.parameter_delta import WantedOp, changed_weights, check_like
from rst.delta.sparse_delta import BaseIdentity, SparseDelta
from rst.errors import ConfigError
from rst.naming import is_bias, unwrap
from rst.numerics.difference import count_changed
from rst.operations.extraction import Extraction
from rst.shards.blocks import like, locals_of
from rst.shards.layout import ShardLayout, find_layout
from rst.training.boundary_on_device import keep_about_
from rst.training.copies_in_gradients import step_into_gradients, steps_each_alone
from rst.training.frozen_weights import FrozenWeights
from rst.training.in_backward import InBackward
from rst.training.optimizer_steps import OptimizerSteps, may_write_between_steps, optimizers_in
from rst.training.outcome import check_outcome, claim
from rst.training.projection import CountKept, choose_projection
from rst.training.sampled_boundary import sampled_boundary
from rst.training.selection import FindBoundary, boundary, keep_top_
from rst.training.sharded_support import check_sharded_by_fsdp
from rst.training.sparse_base import SparseBaseWeights, remember
from rst.training.status import TrainingStatus
from rst.training.streamed_projection import StreamedProjection
from rst.training.support import Support, loss_of
from rst.training.support_processes import leave_out_of_ddp
from rst.training.support_training import SupportTraining
from rst.training.tracking import TrackedTensors, live_tensors, track
from rst.training.uncarried_buffers import UncarriedBuffers


class ResidualSparseTrainer:
    """Keeps a model close to its pretrained weights and exports the sparse difference.

    >>> trainer = ResidualSparseTrainer(model, RSTConfig(ratio=0.001, modules_to_save=["head"]))
    >>> trainer.attach(optimizer)
    >>> ...  # train as always
    >>> trainer.export().save("delta.safetensors")

    The model may be wrapped by `torch.compile` or `DataParallel`, before or after; tied weights count once. Parameters
    that the configuration neither targets nor saves whole are frozen.

    For a model sharded by `fully_shard` or `parallelize_module` (DTensors), each process keeps and projects its own
    part. Create the trainer in every process, after sharding, and export with `rst.distributed.export_sharded`.
    """

    def __init__(self, model: nn.Module, config: RSTConfig | None = None, *, support: Support | None = None) -> None:
        """Remember the weights of `model`, which must be the pretrained ones, as w0.

        Warns (`RSTWarning`) of parameters that a model of transformers did not load from its files, a fresh head or a
        resized vocabulary, and that `modules_to_save` leaves out: base and delta do not give them back.

        Args:
            model: the module to train, possibly wrapped.
            config: what to keep.
            support: for `select="support"`: the weights to train.

        Raises:
            ConfigError: a pattern of the configuration matches nothing, there is nothing to train, or the support is
                missing, or without a use, or names a parameter that is not trained.
            ParameterMismatchError: a parameter is complex, on the meta device, or sharded in a way not supported, or
                the support is for another shape.
        """
        self.model = unwrap(model)
        self.config = config or RSTConfig()
        self._tracked = track(self.model, self.config)
        live = live_tensors(self.model)
        self._layout = find_layout(self.model, live)
        self._names = frozenset(live)
        self._frozen = FrozenWeights({name: live[name] for name in self._tracked.frozen})
        self._uncarried = UncarriedBuffers(self.model, live, self._tracked.buffers)
        self._kept = self._train_support(model, support)
        self._base = remember(self._tracked, live, self.config.base_storage, never_copied=self._kept is not None)
        if self._kept:
            self._kept.stand_in(self._base)
        else:
            weights = list(locals_of(self._tracked.sparse).values())
            self._project = choose_projection(weights, self.config.base_storage)
        self._find_boundary = _boundary_of(self._layout)
        self._identity = identity_of(self.model)
        self._steps = 0
        self._target: float | None = None
        self._boundary: float | Tensor | None = None
        self._counted: tuple[CountKept, list[int]] | None = None
        self._suspended = self._left = self._steps_parts = False
        claim(self.model, self)
        warn_of_what_base_lacks(self.model, frozenset(self._tracked.saved), stacklevel=2)
        self._following: OptimizerSteps | None = None
        self._in_backward: InBackward | None = None

    @property
    def base(self) -> Mapping[str, Tensor]:
        """w0 of the sparsely trained parameters by name; of sharded ones, this process' part."""
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

    @property
    def suspended(self) -> bool:
        """Whether the weights are another's for now: an optimiser's step is refused, a support has no gradients."""
        return self._suspended

    @suspended.setter
    def suspended(self, suspended: bool) -> None:
        self._suspended = suspended
        self._pause_support()

    def _pause_support(self) -> None:
        if self._kept:
            self._kept.paused = self._suspended or self._left

    def expect_steps(self, total_steps: int) -> None:
        """Say how long the run is, if the configuration does not: the share falls over the first half of it."""
        if self.config.total_steps is None and total_steps > 0:
            self.config = replace(self.config, total_steps=total_steps)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield what an optimiser trains, by the name of the parameter that it is, or belongs to.

        With `select="support"` these are the kept weights of each parameter, 1-D and in float32 where the parameter is
        in half precision; else the parameters themselves. Those of modules saved whole come last.
        """
        yield from (self._kept.parameters() if self._kept else self._tracked.sparse).items()
        for name, tensor in live_tensors(self.model).items():
            if name in self._tracked.saved and isinstance(tensor, nn.Parameter) and tensor.requires_grad:
                yield name, tensor

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters to give to an optimiser: `named_parameters` without names."""
        return (parameter for _, parameter in self.named_parameters())

    def to_support(self) -> Support:
        """Return the weights that are kept now as a `Support`, to continue training only those.

        >>> support = trainer.to_support()
        >>> trainer = ResidualSparseTrainer(model, RSTConfig(select="support"), support=support)

        The support contains w0 of these weights, so that the new trainer has the same w0 as this one.

        Raises:
            ConfigError: as `export`.
        """
        self._refuse_shards("to_support")
        live, base = self.read_for_export()
        changes = {name: changed_weights(name, base[name], live[name])[:2] for name in self._tracked.sparse}
        shapes = {name: tuple(live[name].shape) for name in changes}
        return Support.at(
            {name: places for name, (places, _) in changes.items()},
            shapes,
            {name: origin for name, (_, origin) in changes.items()},
        )

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Call `step()` after every `optimizer.step()` that changes weights.

        A step that `GradScaler` skips because of infinite gradients is not counted. With several optimisers, attach the
        one that steps last. If an optimiser wraps another (accelerate's, Lookahead, SAM, ZeRO), the selection runs at
        the end of the outer one's step. Call `optimizer.eval()` of a schedule-free optimiser before the export.

        Raises:
            ConfigError: already attached, the optimiser has none of the trained parameters, or the model has
                changed since the trainer was created.
        """
        if self._following:
            raise ConfigError("already attached; with several optimisers, attach the one that steps last")
        self._check_complete(live_tensors(self.model))
        optimizers = list(optimizers_in(optimizer))
        stepped = {id(weight) for inner in optimizers for group in inner.param_groups for weight in group["params"]}
        self._check_stepped(stepped)
        self._left = False
        self._pause_support()
        if not self._kept and isinstance(self._base, SparseBaseWeights) and not may_write_between_steps(optimizer):
            self._base.thin(name for name, weight in self._tracked.sparse.items() if id(weight) in stepped)
        self._say_attached(type(optimizer).__name__)
        self._following = OptimizerSteps(
            optimizer,
            self._before,
            moved=lambda: None if self._steps_alone() else self.step(),
            after=lambda: None if self._kept or self._steps_alone() else self._base.settle(),
        )

    def attach_in_backward(
        self, build: Callable[[list[nn.Parameter]], torch.optim.Optimizer], *, accumulate: int = 1
    ) -> torch.optim.Optimizer:
        """Step and select parameter by parameter inside `backward()`, and free each gradient at once.

        >>> optimizer = trainer.attach_in_backward(lambda parameters: torch.optim.AdamW(parameters, lr=1e-5))
        >>> for batch in batches:
        ...     loss(model, batch).backward()  # the weights have moved when this returns
        ...     optimizer.step()  # ends the step: counts it, and steps what had no gradient before

        Pass the returned optimiser to learning rate schedules; its `state_dict` has torch's format. An elementwise
        optimiser gives the same bits as with `attach`. The gradient norm over all parameters is never known: clip each
        gradient by its own norm, in a hook registered before this call (`register_post_accumulate_grad_hook`).
        `GradScaler` would unscale too late.

        Args:
            build: creates the optimiser from all trained parameters.
            accumulate: backward passes per step. With more than one, gradients are kept until the last of them.

        Raises:
            ConfigError: attached already, or a selection that needs all parameters at once ("top", `every`), or has no
                gradients to free ("support"), or several processes, whose gradients are added up later, or an
                optimiser that wraps another.
        """
        if self.config.select not in ("threshold", "bias") or self.config.every != 1:
            chosen = f"select={self.config.select!r}, every={self.config.every}"
            raise ConfigError(f'{chosen}: steps in backward need select="threshold" or "bias" after every step')
        if accumulate < 1:
            raise ConfigError(f"accumulate={accumulate}: the number of backward passes per step must be at least 1")
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            processes = torch.distributed.get_world_size()
            if processes > 1 or self._layout:
                raise ConfigError(f"{processes} processes: their gradients are added up after the hooks; use attach")
        optimizer = build(list(self.parameters()))
        if may_write_between_steps(optimizer):
            raise ConfigError(f"{type(optimizer).__name__} writes weights outside of its parameters' steps; use attach")
        self.attach(optimizer)
        self._in_backward = InBackward(
            optimizer,
            self._tracked.sparse,
            accumulate,
            self._base,
            lambda names: self._select(names, self._steps + 1, final=False),
        )
        return optimizer

    def move_support(
        self, batches: Iterable[Any], share: float = 0.1, *, loss: Callable[[Any], Tensor] | None = None
    ) -> int:
        """Replace the kept weights that moved least from w0 by those with the largest gradients.

        >>> if step % 100 == 0:
        ...     trainer.move_support(batches, share=0.1)

        Each parameter keeps as many weights as before. Dropped weights are reset to w0, bit for bit; the others keep
        their values and optimiser states; new ones start at w0 with zero states. Call it between steps, after
        `zero_grad()`. With several processes, the gradients of the first one decide.

        Args:
            batches: as in `Support.from_gradients`, at least one.
            share: of each parameter's kept weights, in (0, 1].
            loss: gives the loss of a batch; if left out, `model(**batch).loss`.

        Returns:
            How many moved: fewer than asked for where no other weight has a gradient.

        Raises:
            ConfigError: no support is trained or no optimiser attached, the share is out of range, there are gradients
                or no batch, an optimiser's state is not one entry a weight, or something else wrote to the weights.
                Nothing has changed then.
        """
        if not self._kept or not self._following:
            raise ConfigError('move_support needs select="support" and attach(optimizer)')
        if not 0 < share <= 1:
            raise ConfigError(f"share={share}: must be a fraction of the kept weights, in (0, 1]")
        if self.suspended:
            raise ConfigError("the adapter in training is switched off; call set_adapter to switch it on")
        self._refuse_shards("move_support")
        self._kept.check(self._base)
        optimizer = self._following.optimizer
        moved = self._kept.move(self.model, batches, share, loss or loss_of(self.model), optimizer)
        self._kept.stand_in(self._base)
        return moved

    def detach(self) -> None:
        """Undo `attach`. A support gathers no gradients from then on, until another `attach`."""
        self._left = True
        self._pause_support()
        if self._following:
            self._following.detach()
        if self._in_backward:
            self._in_backward.remove()
        self._following = self._in_backward = None
        self._say_attached(None)
        if self.config.base_storage is None and not self._kept and isinstance(self._base, SparseBaseWeights):
            self._base.thicken()

    def continue_from(self, delta: SparseDelta) -> None:
        """Apply a delta to the weights and continue training from there, relative to w0. Raises as `delta.apply`."""
        self._base.take()
        try:
            delta.apply(self.model)
            if self._kept:
                self._kept.start_from_weights()
                self._kept.stand_in(self._base)
        finally:
            self._base.settle()

    def weights_are_back(self) -> None:
        """Go on after others wrote to the weights (another adapter), who have put the trained ones, or w0, back."""
        if isinstance(self._base, SparseBaseWeights):
            self._base.trust()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a copy, which is not attached to an optimiser."""
        return {**self.__dict__, "_following": None, "_in_backward": None, "_counted": None}

    def _before(self, args: Any, kwargs: Any) -> Any:
        """Take w0 of the weights that are about to change; with a closure, only after it has been evaluated."""
        if self._kept or self.suspended or self._steps_alone():
            return None
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            if self.config.base_storage == "sparse":
                self._step_into_gradients(args[0])
            self._take()
            return None

        def then_take() -> Any:
            loss = closure()
            self._take()
            return loss

        return args[:1], {"closure": then_take}

    def _take(self) -> None:
        self._base.take(self._in_backward.waiting() if self._in_backward else None)

    def _step_into_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        if self._in_backward or not isinstance(self._base, SparseBaseWeights) or not steps_each_alone(optimizer):
            return
        self._steps_parts = True
        try:
            step_into_gradients(optimizer, self._tracked.sparse, self._base)
        finally:
            self._steps_parts = False

    def _steps_alone(self) -> bool:
        return self._steps_parts or (self._in_backward is not None and self._in_backward.steps_alone)

    def step(self) -> None:
        """Count one optimiser step, and select if one is due (`every`). `attach` calls this for you.

        Raises:
            ConfigError: the training is suspended, so the weights that were stepped are not its own, or a frozen
                parameter has been made trainable.
            ParameterMismatchError: a buffer changed that no delta holds.
        """
        if self.suspended:
            raise ConfigError(
                "an optimiser stepped while the adapter in training was switched off; call set_adapter to switch it on"
            )
        self._frozen.check_frozen()
        self._uncarried.check(self._base)
        self._steps += 1
        if self._in_backward:
            self._select(self._in_backward.finish(), self._steps, final=False)
        elif self._kept or (self.config.every and self._steps % self.config.every == 0):
            self._select(self._tracked.sparse, self._steps, final=False)

    @torch.no_grad()
    def select(self, *, final: bool = True) -> None:
        """Reset every weight that the configuration does not keep to w0, bit for bit (Eq. 17).

        Args:
            final: as an export does: exactly the share that is to be reached. False, as after a step, keeps the share
                that the run is at, of large models about.

        Raises:
            ParameterMismatchError: a parameter changed its shape or dtype since the start.
            NonFiniteError: top-r selection met a NaN.
        """
        self._select(self._tracked.sparse, self._steps, final=final)
        if not self._kept:
            self._base.settle()

    @torch.no_grad()
    def _select(self, names: Iterable[str], steps: int, *, final: bool) -> None:
        """Select from some parameters as after `steps` optimiser steps."""
        if self._kept:
            self._kept.write(self._base)
            return
        config, progress = self.config, self.config.progress(steps)
        tuned = locals_of({name: self._tracked.sparse[name] for name in names})
        base = self._base.on_device_of(tuned)
        self._counted = None
        if config.select == "threshold":
            if isinstance(self._project, StreamedProjection):
                base = self._base.on_device_of(tuned, move=False)
            pairs = ((weight, base[name]) for name, weight in tuned.items())
            self._boundary = tau = config.threshold_at(progress)
            count = self._project(pairs, tau)
            if count and len(tuned) == len(self._tracked.sparse):
                self._counted = count, self._writes()
        elif config.select == "top":
            self._target = share = config.exported_ratio(progress) if final else config.ratio_at(progress)
            devices = {weight.device.type for weight in tuned.values()}
            if devices and "cpu" not in devices and not final and not self._layout:
                self._boundary = keep_about_(tuned, base, share, self._project, step=steps)
                return
            estimate = None if final or self._layout else sampled_boundary(tuned, base, share, step=steps)
            found = estimate or self._find_boundary(tuned, base, share)
            self._boundary = found[0]
            keep_top_(tuned, base, found, self._project)
        else:
            for name in (name for name in tuned if not is_bias(name)):
                tuned[name].copy_(base[name])

    def status(self) -> TrainingStatus:
        """Steps, weights kept (`count_changed`) and where the selection ends, now. Collective."""
        return TrainingStatus(
            steps=self._steps,
            kept=self.count_changed(),
            weights=sum(map(self._numel, self._tracked.sparse)),
            target=self._target,
            boundary=None if self._boundary is None else max(float(self._boundary), 0.0),
        )

    def _numel(self, name: str) -> int:
        return self._layout.numel(name) if self._layout else self._tracked.sparse[name].numel()

    def count_changed(self) -> int:
        """Count the tracked weights that differ from w0 now, in all processes.

        Reads all of them once more, unless the last selection counted them, and torch no write to them since.
        """
        if self._counted and not self._layout and self._counted[1] == self._writes():
            return self._counted[0]()
        tuned = locals_of(self._tracked.sparse)
        base = self._base.on_device_of(tuned)
        counts = dict(zip(tuned, count_changed((base[name], weight) for name, weight in tuned.items()), strict=True))
        return sum((self._layout.add_up(counts) if self._layout else counts).values())

    def _writes(self) -> list[int]:
        return [weight._version for weight in self._tracked.sparse.values()]

    def export(self, op: WantedOp = "add", *, select: bool = True) -> SparseDelta:
        """Select once more, then extract the sparse residuals (Eq. 16), changed buffers and modules saved whole.

        Afterwards the model equals base plus delta, bit for bit. Warns (`RSTWarning`) if almost nothing or nearly
        everything is kept, or if the trainer saw no optimiser step.

        Args:
            op: what to store: residuals, the tuned values ("replace"), steps ("step"), or whichever of them packs
                smallest ("smallest"), as in `rst.export`.
            select: False stores what differs from w0 now and leaves the model as it is, for use during a run.

        Raises:
            ConfigError: a change would be lost: a frozen parameter was made trainable or has other values, a tensor is
                new, gone or another since the trainer was made. Or the model is sharded.
            NonFiniteError: a weight is NaN; the message names the parameter.
        """
        if self._layout:
            raise ConfigError("the model is sharded; call rst.distributed.export_sharded(trainer) in every process")
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
            model_config=config_of_module(self.model),
        ).run()

    def read_for_export(self, *, select: bool = True) -> tuple[dict[str, Tensor], Mapping[str, Tensor]]:
        """Check the model, select once more, and return its tensors and w0 by name, as `export` reads them.

        Raises:
            ConfigError: as `export`.
        """
        live = live_tensors(self.model)
        self._check_unchanged(live)
        self._frozen.check_unchanged(live)
        if select and self._kept:
            self.select()
        elif select:
            before = self.count_changed()
            self._select(self._tracked.sparse, self._steps, final=True)
            self._base.settle()
            total = sum(weight.numel() for weight in self._tracked.sparse.values())
            changed = self.count_changed()
            check_outcome(self.config, steps=self._steps, changed=changed, total=total, before=before)
        return live, self._base.on_device_of(locals_of(live))

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to resume, including w0; save it with the model and the optimiser.

        `rst export` finds it under any key of a checkpoint and needs no other base. Of a sharded model it has DTensors,
        to be saved, and loaded into in place on any number of processes, by `torch.distributed.checkpoint`.

        Raises:
            ConfigError: as `export`, for the same would be lost in an export from the checkpoint.
        """
        live = live_tensors(self.model)
        self._check_unchanged(live)
        self._frozen.check_unchanged(live)
        tracked, coordinates = self._tracked, self.coordinates
        own = [name for name in tracked.sparse if self._kept and coordinates.has_own(name)]
        base = self._recorded(name for name in tracked.sparse if name not in own)
        buffers = self._recorded(tracked.buffers)
        support = self._kept.state_dict() if self._kept else {}
        kept = {coordinates.name_in_files(name): self._places(name, support) for name in own}
        saved = coordinates.files_of_all(tracked.saved)
        progress = self.config.progress(self._steps)
        tau = self.config.threshold_at(progress) if self.config.select == "threshold" else None
        return {
            "format": TRAINER_RECORD,
            "version": RECORD_VERSION,
            "steps": self._steps,
            "config": self.config.to_dict(),
            "threshold": tau,
            "ratio": self.config.exported_ratio(progress) if self.config.select == "top" else None,
            "base": base,
            "support": support,
            "buffers": buffers,
            "saved": saved,
            "tied": coordinates.ties_in_files(tracked.tied),
            "kept": kept,
            "places": coordinates.places([*base, *kept, *buffers, *saved]),
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
        if isinstance(self._base, SparseBaseWeights):
            self._base.expect_load()
        restored = self._restored(record)
        in_module = {self.coordinates.name_in_files(name): name for name in self._tracked.sparse}
        kept = {in_module.get(name, name) for name in record.kept}
        if kept and not self._kept:
            raise ConfigError(f'the state is of a support, {len(kept)} parameters without all of w0; select="support"')
        if different := sorted((restored.keys() | kept) ^ self._base.keys()):
            raise ConfigError(f"the state tracks other tensors: {len(different)} differ, first {different[0]}")
        live = locals_of(live_tensors(self.model))
        for name, origin in restored.items():
            check_like(name, origin, live[name])
        if self._kept:
            self._kept.load(state.get("support"))
            self._kept.stand_in(self._base, restored_later=True)
        self._base.load(restored)
        self._frozen.wait_for_restored()
        self._steps = record.steps

    def _places(self, name: str, support: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        if name in support:
            return {key: support[name][key] for key in ("positions", "origin")}
        assert isinstance(self._base, SparseBaseWeights)
        places = self._base.places[name]  # none
        return {"positions": places.positions, "origin": places.origin}

    def _recorded(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return w0 of some tensors in file coordinates; of a sharded model, only the names are those of the files."""
        live, files = live_tensors(self.model), self.coordinates
        if self._layout:
            own = {name: like(live[name], self._base[name]) for name in names}
            return {files.name_in_files(name): tensor for name, tensor in own.items()}
        before = files.to_files(ChainMap(self._base, live))  # type: ignore[arg-type]  # only read
        found = {name: before[name] for name in files.files_of_all(names)}
        return {name: tensor.contiguous() if files.is_moved(name) else tensor for name, tensor in found.items()}

    def _restored(self, record: TrainerRecord) -> dict[str, Tensor]:
        """Return w0 by the model's names; of sharded tensors, this process' part."""
        stored = SparseDelta({}, dense=locals_of({**record.base, **record.buffers}), coordinates=record.coordinates)
        live = locals_of(live_tensors(self.model))
        own = in_module(stored, self.coordinates, ChainMap(self._base, live)).dense  # type: ignore[arg-type]
        return {
            name: tensor
            for name, tensor in own.items()
            if name in self._base or name in stored.dense or name not in live
        }

    def _train_support(self, model: nn.Module, support: Support | None) -> SupportTraining | None:
        if (support is not None) != (self.config.select == "support"):
            has = "no support" if support is None else f"{support!r}"
            raise ConfigError(f'select={self.config.select!r} with {has}; select="support" and support= go together')
        if support is None:
            return None
        if self._layout:
            check_sharded_by_fsdp(self.model)
        else:
            leave_out_of_ddp(model, self.model, self._tracked.sparse)
        return SupportTraining(self.model, self._tracked.sparse, support, self._layout)

    def _refuse_shards(self, method: str) -> None:
        if self._layout:
            raise ConfigError(f"{method} of a sharded model is not supported; choose the support before fully_shard")

    def _say_attached(self, optimizer: str | None) -> None:
        if isinstance(self._base, SparseBaseWeights):
            self._base.attached = optimizer

    def _check_stepped(self, stepped: Set[int]) -> None:
        if self._kept and not any(id(values) in stepped for values in self._kept.parameters().values()):
            raise ConfigError("the optimiser has none of the support's weights; build it from trainer.parameters()")
        # Sparsely trained parameters may be added later, once they are unfrozen.
        live = live_tensors(self.model)
        trained = [*self._tracked.sparse.values(), *(live[name] for name in self._tracked.saved)]
        if not self._kept and not any(id(parameter) in stepped for parameter in trained):
            raise ConfigError(
                f"the optimiser has none of the {len(trained)} tracked parameters; build it from this model"
            )

    def _check_unchanged(self, live: Mapping[str, Tensor]) -> None:
        for name, parameter in self._tracked.sparse.items():
            if live.get(name) is not parameter:
                raise ConfigError(
                    "replaced since the trainer was created; create the trainer after changing the model",
                    parameter=name,
                )
        self._check_complete(live)

    def _check_complete(self, live: Mapping[str, Tensor]) -> None:
        for name in sorted(self._names ^ live.keys()):
            what = "new" if name in live else "gone"
            raise ConfigError(
                f"{what} since the trainer was created, so its change would be lost; create the trainer after "
                f"changing the model",
                parameter=name,
            )


def _boundary_of(layout: ShardLayout | None) -> FindBoundary:
    """Return the function that finds the top-r % boundary, for sharded or whole weights."""
    if layout is None:
        return boundary
    from rst.training.sharded_selection import sharded_boundary

    return partial(sharded_boundary, layout)


def identity_of(model: nn.Module) -> BaseIdentity:
    """Return the name and revision that transformers keeps on its models; unknown for others."""
    revision = getattr(getattr(model, "config", None), "_commit_hash", None)
    return BaseIdentity(name=getattr(model, "name_or_path", None) or None, revision=revision)

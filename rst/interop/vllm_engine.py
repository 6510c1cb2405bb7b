"""vLLM's weight transfer from a chain: at each update, a worker reads the deltas published since and applies them.

    llm = LLM(model, weight_transfer_config=WeightTransferConfig(backend="rst"))
    llm.init_weight_transfer_engine({"init_info": {"store": "/shared/chain"}})
    llm.start_weight_update(); llm.update_weights({"update_info": {}}); llm.finish_weight_update()

Weights go through the model's own loader, in checkpoint coordinates, so that fused, tied and tensor-parallel weights
are updated. Where the engine keeps weights as in the checkpoint, they are patched in place and read back; a chain of
absolute values (`Publisher(..., op="replace")`) then needs no copy of them. Otherwise the worker keeps a copy in CPU
memory and checks each state against it; if the engine packs its weights, each update loads all of them.
"""

import warnings
from dataclasses import dataclass

from rst.errors import ConfigError, RSTWarning
from rst.interop.vllm import to_engine_patches
from rst.interop.vllm_model import can_be_patched, check_patched, load_patches, load_whole
from rst.sync.chain import Pointer, read_delta, read_pointer
from rst.sync.errors import ChainError, ChainGapError, ChainOrderError
from rst.sync.follower import Follower
from rst.sync.store import open_store

try:
    from vllm.distributed.weight_transfer.base import (
        WeightTransferEngine,
        WeightTransferInitInfo,
        WeightTransferUpdateInfo,
    )
except ImportError as error:
    raise ImportError(f"rst.interop.vllm_engine needs vLLM 0.29 or later ({error})") from error


@dataclass
class ChainInit(WeightTransferInitInfo):  # type: ignore[misc]
    """Where the chain is: a folder, or a URL for fsspec."""

    store: str


@dataclass
class ChainUpdate(WeightTransferUpdateInfo):  # type: ignore[misc]
    """The step to move the model to, forwards or back; None, only for a single worker, is the last published one."""

    step: int | None = None


class ChainEngine(WeightTransferEngine):  # type: ignore[misc]
    """The weight-transfer backend `rst`."""

    init_info_cls, update_info_cls = ChainInit, ChainUpdate
    _chain: str
    _step: int
    _state: str
    _loaded: str | None  # the state of the model itself; None while it is written, and after a failure
    _in_place: bool  # whether the model stores its weights as in the checkpoint
    _copy: Follower | None  # all weights at `_step`; None if patches do not need them

    def init_transfer_engine(self, init_info: ChainInit) -> None:
        """Load the chain's last intact anchor. Raises `ChainError` if there is none."""
        self._store = open_store(init_info.store)
        pointer = read_pointer(self._store)
        self._take_anchor(pointer, -1, pointer.step)
        if not self._in_place:
            assert self._copy is not None
            size = sum(weight.nbytes for weight in self._copy.weights.values())
            warnings.warn(
                f"the engine packs its weights, so {size:,} bytes stay in CPU memory and each update loads all of them",
                RSTWarning,
                stacklevel=2,
            )

    def start_weight_update(self) -> None:
        """Do nothing: each update is complete in itself."""

    def receive_weights(self, update_info: ChainUpdate) -> None:
        """Move the model to a step: by deltas, or by an anchor if going back or if a delta is missing or damaged.

        Raises:
            ChainError: the step is not published, or a file is missing or damaged and no anchor helps. The model is
                then at the last available step.
            ConfigError: no step is given and there are several workers, which could find different ones.
            CheckpointError: the engine has other weights than it received; the next update loads all of them.
        """
        if update_info.step is None and (workers := self.parallel_config.world_size_across_dp) > 1:
            raise ConfigError(f"step must be given, because {workers} workers could find different last steps")
        pointer = read_pointer(self._store)
        goal = pointer.step if update_info.step is None else update_info.step
        if not 0 <= goal <= pointer.step:
            raise ChainGapError(
                f"step {goal} is not published; the last one is {pointer.step}", file=self._store.location
            )
        if goal < self._step or pointer.chain != self._chain or self._loaded != self._state:
            self._take_anchor(pointer, -1, goal)
        try:
            while self._step < goal:
                self._advance(pointer, goal)
        finally:
            if not self._in_place and self._loaded != self._state:
                self._load_copy()

    def finish_weight_update(self) -> None:
        """Do nothing."""

    def shutdown(self) -> None:
        """Release the copy of the weights."""
        self._copy = None

    def _advance(self, pointer: Pointer, goal: int) -> None:
        """Advance by one step, or to an anchor."""
        try:
            self._apply(self._step + 1)
        except ChainError as error:
            try:
                self._take_anchor(pointer, self._step, goal)
            except ChainError:
                raise error from None
            if not isinstance(error, ChainGapError):  # pruned steps are not damage
                warnings.warn(f"{error}; continued from the anchor of step {self._step}", RSTWarning, stacklevel=2)

    def _apply(self, step: int) -> None:
        delta, link, _ = read_delta(self._store, step)
        if (link.chain, link.from_step, link.state_before) != (self._chain, step - 1, self._state):
            raise ChainOrderError(f"step {step} does not follow the model's step", file=self._store.location)
        if not self._in_place:
            assert self._copy is not None
            self._copy.apply(delta)
            self._step, self._state = step, link.state_after
            return
        if delta.op == "replace":
            patches, self._copy = to_engine_patches(delta).patches, None
        elif self._copy is None:
            raise ChainOrderError(
                f"step {step} does not hold absolute values, unlike those before it", file=self._store.location
            )
        else:
            patches = to_engine_patches(delta, self._copy.weights).patches
            self._copy.apply(delta)
        self._loaded = None
        load_patches(self.model, patches)
        check_patched(self.model, patches)
        self._step, self._state, self._loaded = step, link.state_after, link.state_after

    def _take_anchor(self, pointer: Pointer, above: int, until: int) -> None:
        """Load the last intact anchor in between. Raises `ChainError` if there is none."""
        copy = Follower.from_last_anchor(self._store, pointer, above, until)
        assert copy.step is not None
        self._copy, self._chain, self._step, self._state = copy, pointer.chain, copy.step, copy.state
        self._load_copy()
        self._in_place = can_be_patched(self.model, copy.weights)

    def _load_copy(self) -> None:
        assert self._copy is not None
        self._loaded = None
        load_whole(self.model, self.model_config, self._copy.weights)
        self._loaded = self._state

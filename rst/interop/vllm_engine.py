"""vLLM's weight transfer out of a chain: at each update a worker reads the deltas published since and applies them.

    llm = LLM(model, weight_transfer_config=WeightTransferConfig(backend="rst"))
    llm.init_weight_transfer_engine({"init_info": {"store": "/shared/chain"}})
    llm.start_weight_update(); llm.update_weights({"update_info": {}}); llm.finish_weight_update()

Patches go through the model's own loader, in checkpoint coordinates, so that fused, tied and tensor-parallel weights
get theirs. A chain of absolute values (`Publisher(..., op="replace")`) needs no copy of the weights here; of others the
worker keeps one in CPU memory, and checks every state against it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rst.errors import CheckpointError
from rst.interop.vllm import to_engine_patches
from rst.sync.anchor import last_anchor
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
    from vllm.model_executor.model_loader.checkpoint_weight_patch import (
        CheckpointWeightPatch,
        load_checkpoint_weight_patches,
    )
except ImportError as error:
    raise ImportError(f"rst.interop.vllm_engine needs vLLM 0.29 or later ({error})") from error


@dataclass
class ChainInit(WeightTransferInitInfo):  # type: ignore[misc]
    """Where the chain is: a folder, or a URL for fsspec."""

    store: str


@dataclass
class ChainUpdate(WeightTransferUpdateInfo):  # type: ignore[misc]
    """The step to bring the model to; None for the last published one."""

    step: int | None = None


class ChainEngine(WeightTransferEngine):  # type: ignore[misc]
    """The backend `rst`."""

    init_info_cls, update_info_cls = ChainInit, ChainUpdate
    _chain: str
    _step: int
    _state: str
    _follower: Follower | None  # the copy of the weights that residuals and steps need

    def init_transfer_engine(self, init_info: ChainInit) -> None:
        """Load the chain's last intact anchor. Raises `ChainError` if there is none."""
        self._store = open_store(init_info.store)
        self._load_anchor(read_pointer(self._store), -1)

    def start_weight_update(self) -> None:
        """Nothing: patches change weights in place."""

    def receive_weights(self, update_info: ChainUpdate) -> None:
        """Apply the deltas up to a step; where one is missing or damaged, a later anchor.

        Raises:
            ChainError: the step is not published, or a file is missing or damaged and no later anchor is there.
        """
        pointer = read_pointer(self._store)
        last = pointer.step if update_info.step is None else update_info.step
        if last > pointer.step:
            raise ChainGapError(f"step {last} is not published, {pointer.step} is the last", file=self._store.location)
        while self._step < last:
            try:
                self._apply(self._step + 1)
            except ChainError as error:
                try:
                    self._load_anchor(pointer, self._step)
                except ChainError:
                    raise error from None

    def finish_weight_update(self) -> None:
        """Nothing is left to do."""

    def shutdown(self) -> None:
        """Let go of the copy of the weights."""
        self._follower = None

    def _apply(self, step: int) -> None:
        delta, link, _ = read_delta(self._store, step)
        if (link.chain, link.from_step, link.state_before) != (self._chain, step - 1, self._state):
            raise ChainOrderError(f"holds no step {step} of what the model has", file=self._store.location)
        absolute = delta.op == "replace"
        if not absolute and self._follower is None:
            raise ChainOrderError(f"step {step} is not absolute as those before", file=self._store.location)
        patches = to_engine_patches(
            delta, None if absolute or self._follower is None else self._follower.weights
        ).patches
        if absolute:
            self._follower = None
        elif self._follower is not None:
            self._follower.apply(delta)
        self._load(
            CheckpointWeightPatch(patch.name, patch.full_shape, patch.values.dtype, patch.values, patch.indices)
            for patch in patches
        )
        self._step, self._state = step, link.state_after

    def _load_anchor(self, pointer: Pointer, above: int) -> None:
        found = last_anchor(self._store, pointer, above)
        if found is None:
            raise ChainGapError(f"no anchor after step {above}", file=self._store.location)
        weights, link = found
        self._load_whole(weights)
        self._chain, self._step, self._state = link.chain, link.to_step, link.state_after
        self._follower = Follower.from_anchor(self._store, link.to_step)

    def _load_whole(self, weights: Mapping[str, Tensor]) -> None:
        """Load whole tensors as patches of all elements: vLLM refuses those where a model has packed its weights."""
        for name, weight in weights.items():
            if not weight.is_floating_point():
                raise CheckpointError(
                    f"{weight.dtype}: vLLM has patches of floating-point weights alone", parameter=name
                )
            flat = weight.reshape(-1)
            self._load(
                [CheckpointWeightPatch(name, tuple(weight.shape), weight.dtype, flat, torch.arange(flat.numel()))]
            )

    def _load(self, patches: Iterable[CheckpointWeightPatch]) -> None:
        # Positions are sorted and unique: a delta's reader has checked that.
        load_checkpoint_weight_patches(self.model, patches, validate_unique_indices=False)

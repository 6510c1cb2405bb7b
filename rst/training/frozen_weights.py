"""The weights that a training may not move: no export would carry their change, so one that has moved is noticed."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rst.errors import ConfigError
from rst.shards.blocks import local

_Sum = tuple[torch.dtype, int] | None


class FrozenWeights:
    """The frozen parameters of a model, with a checksum of each."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        """Freeze `weights`, by name, and read them once."""
        self._weights = weights
        for weight in weights.values():
            weight.requires_grad_(False)
        self._sums: dict[str, _Sum] | None = None
        self._read()

    def wait_for_restored(self) -> None:
        """Read the weights again at the next step or check: a checkpoint may bring others meanwhile."""
        self._sums = None

    def check_frozen(self) -> None:
        """Raise `ConfigError` if one requires gradients again. Reads no weight's values."""
        self._read()
        for name, weight in self._weights.items():
            if weight.requires_grad:
                _refuse_thawed(name)

    def check_unchanged(self, live: Mapping[str, Tensor]) -> None:
        """Raise `ConfigError` if one was thawed or, by the model's tensors as they are now, has other values."""
        for name, known in self._read().items():
            if isinstance(live[name], nn.Parameter) and live[name].requires_grad:
                _refuse_thawed(name)
            found = _checksum(live[name])
            if known != found and None not in (known, found):
                raise ConfigError(
                    "frozen, and changed since the trainer was made, which an export would lose; name it in "
                    "target_modules or modules_to_save, or make the trainer after the change",
                    parameter=name,
                )

    def _read(self) -> dict[str, _Sum]:
        if self._sums is None:
            self._sums = {name: _checksum(weight) for name, weight in self._weights.items()}
        return self._sums


def _refuse_thawed(name: str) -> None:
    raise ConfigError(
        "made trainable after the trainer froze it, so its change would be lost; make the trainer while it is "
        "trainable (with a callback: RSTCallback(ResidualSparseTrainer(model, config)) before it is frozen for a "
        "while), or target it",
        parameter=name,
    )


def _checksum(weight: Tensor) -> _Sum:
    """The sum of the bits, on the weight's device; None for what has no plain memory (quantised, sparse, meta)."""
    own = local(weight).detach()
    if type(own) is not Tensor or own.layout != torch.strided or own.is_meta or own.is_quantized or not own.numel():
        return None
    flat = (torch.view_as_real(own.resolve_conj()) if own.is_complex() else own).contiguous().reshape(-1)
    width = {1: torch.uint8, 2: torch.int16}.get(flat.element_size(), torch.int32)
    return own.dtype, int(flat.view(width).sum(dtype=torch.int64))

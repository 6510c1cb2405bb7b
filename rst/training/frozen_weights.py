"""Frozen weights: no export would carry a change of theirs, so a change is detected."""

from collections.abc import Mapping

from torch import Tensor, nn

from rst.errors import ConfigError
from rst.numerics.checksum import Checksum, checksum
from rst.shards.blocks import local


class FrozenWeights:
    """The frozen parameters of a model, with a checksum of each."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        """Freeze `weights`, by name, and read them once."""
        self._weights = weights
        self._found_frozen = {name for name, weight in weights.items() if not weight.requires_grad}
        for weight in weights.values():
            weight.requires_grad_(False)
        self._sums: dict[str, Checksum | None] | None = None
        self._read()

    def wait_for_restored(self) -> None:
        """Read the weights again at the next step or check, because a checkpoint may be loaded before."""
        self._sums = None

    def check_frozen(self) -> None:
        """Raise `ConfigError` if a frozen weight requires gradients again. Does not read values."""
        self._read()
        for name, weight in self._weights.items():
            if weight.requires_grad:
                self._refuse_thawed(name)

    def check_unchanged(self, live: Mapping[str, Tensor]) -> None:
        """Raise `ConfigError` if a frozen weight was made trainable or its values in `live` have changed."""
        for name, known in self._read().items():
            if isinstance(live[name], nn.Parameter) and live[name].requires_grad:
                self._refuse_thawed(name)
            found = checksum(local(live[name]))
            if known != found and None not in (known, found):
                self._refuse_changed(name)

    def _refuse_thawed(self, name: str) -> None:
        if name in self._found_frozen:
            raise ConfigError(
                "made trainable, but it was frozen when the trainer was created, so its change would be lost; name "
                "its module in "
                "modules_to_save to store it whole, or create the trainer while it is trainable (with a callback: "
                "RSTCallback(ResidualSparseTrainer(model, config)) before it is frozen for a while)",
                parameter=name,
            )
        raise ConfigError(
            "made trainable after the trainer froze it, because target_modules or exclude_modules leaves it out, so "
            "its "
            "change would be lost; change these settings to include it, or name its module in modules_to_save",
            parameter=name,
        )

    def _refuse_changed(self, name: str) -> None:
        trained = (
            "create the trainer while it is trainable"
            if name in self._found_frozen
            else "include it by target_modules and exclude_modules"
        )
        raise ConfigError(
            "frozen, but changed since the trainer was created, and an export would lose the change; name its "
            "module in "
            f'modules_to_save, or create the trainer after the change; or {trained}, with base_storage="device"',
            parameter=name,
        )

    def _read(self) -> dict[str, Checksum | None]:
        if self._sums is None:
            self._sums = {name: checksum(local(weight)) for name, weight in self._weights.items()}
        return self._sums

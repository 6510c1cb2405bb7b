"""A cell's curve for TensorBoard: scores and losses at every evaluation, as event files beside the cell's JSON."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from examples.experiment.settings import SettingsError


def require_tensorboard() -> None:
    """Raise `SettingsError` saying what to install where TensorBoard is missing."""
    if find_spec("tensorboard") is None:
        raise SettingsError("--tensorboard needs a package that is not installed: pip install tensorboard")


class TensorBoardLog:
    """Writes points of the curve: `accuracy`, `validators/...` and `losses/...`, by iteration."""

    def __init__(self, folder: Path) -> None:
        """Know the folder. Nothing is written before the first point."""
        self.folder = folder
        self._writer: Any = None

    def add(self, point: dict[str, Any]) -> None:
        """Write a point; the first one makes readers forget what a killed run wrote from its iteration on."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder), purge_step=point["iteration"])
        groups = {"validators": point["validators"], "losses": point["losses"]}
        scores = {f"{group}/{name}": value for group, values in groups.items() for name, value in values.items()}
        for name, value in {"accuracy": point["accuracy"], **scores}.items():
            self._writer.add_scalar(name, value, point["iteration"])
        self._writer.flush()

    def __enter__(self) -> "TensorBoardLog":
        """Nothing to open yet."""
        return self

    def __exit__(self, *exception: object) -> None:
        """End the file."""
        if self._writer is not None:
            self._writer.close()

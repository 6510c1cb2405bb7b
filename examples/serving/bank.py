"""A folder of adapters, of which the most recently used are kept ready in memory, up to a limit in bytes."""

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from rst import PreparedDelta, SparseDelta

DELTA_FILE = "delta.safetensors"


class UnknownAdapterError(LookupError):
    """The folder has no adapter of this name."""


class AdapterTooLargeError(MemoryError):
    """One adapter alone exceeds the bound."""


@dataclass
class BankUse:
    """What the bank has done so far, and what it holds."""

    hits: int = 0
    loads: int = 0
    evictions: int = 0
    adapters: int = 0
    bytes: int = 0
    max_bytes: int = 0


class DeltaBank:
    """Deltas prepared for one model, the least recently used ones dropped when the bytes run out.

    `names`, `find` and `version` may be called from any thread. `prepared` reads the base's weights, so it belongs to
    the thread that exchanges them.

    >>> bank = DeltaBank(model, Path("adapters/"), max_bytes=200_000_000)
    >>> with bank.prepared("clipart"):
    ...     model(images)

    Attributes:
        use: counts, and the bytes held now.
    """

    def __init__(self, model: nn.Module, folder: Path, max_bytes: int) -> None:
        """Serve `folder/<name>/delta.safetensors`, as `RSTModel.save_pretrained` writes them.

        Args:
            model: holds the base's weights whenever `prepared` is called.
            folder: of adapters.
            max_bytes: bound of all prepared deltas together. While one is read, it and the arrays of its file come on
                top.

        Raises:
            NotADirectoryError: there is no such folder.
        """
        if not folder.is_dir():
            raise NotADirectoryError(f"{folder}: no such folder of adapters")
        self._model = model
        self._folder = folder
        self._ready: OrderedDict[str, tuple[tuple[int, ...], PreparedDelta]] = OrderedDict()
        self.use = BankUse(max_bytes=max_bytes)

    def names(self) -> list[str]:
        """Every adapter in the folder, sorted."""
        return sorted(path.parent.name for path in self._folder.glob(f"*/{DELTA_FILE}"))

    def find(self, name: str) -> Path:
        """Return the file of one adapter. Raises `UnknownAdapterError`; no name leads out of the folder."""
        is_plain = name not in ("", ".", "..") and not {"/", "\\", "\0"} & set(name)
        path = self._folder / name / DELTA_FILE
        try:
            found = is_plain and path.is_file()
        except (OSError, ValueError):  # a name longer than names of files are, or of characters that none has
            found = False
        if not found:
            raise UnknownAdapterError(f"no adapter {name[:99]!r}")
        return path

    def version(self, name: str) -> tuple[int, ...]:
        """What changes when an adapter's file is replaced. Raises `UnknownAdapterError`."""
        try:
            found = self.find(name).stat()
        except OSError as error:  # replaced at this moment, folder and all
            raise UnknownAdapterError(f"no adapter {name[:99]!r}") from error
        return found.st_ino, found.st_size, found.st_mtime_ns

    def prepared(self, name: str) -> PreparedDelta:
        """Return one adapter, ready to apply, from memory, or from disk if its file is another one than before.

        Raises:
            UnknownAdapterError: there is none of this name.
            AdapterTooLargeError: it exceeds the bound by itself.
            RSTError: its file is damaged, or it is for another base.
        """
        version = self.version(name)  # before it is read, so that a file replaced meanwhile is read again
        if name in self._ready and self._ready[name][0] == version:
            self._ready.move_to_end(name)
            self.use.hits += 1
            return self._ready[name][1]
        prepared = SparseDelta.load(self.find(name)).prepare(self._model)
        if name in self._ready:
            self._drop(name)
        self._make_room(name, prepared.nbytes)
        self._ready[name] = version, prepared
        self.use.loads += 1
        self.use.adapters += 1
        self.use.bytes += prepared.nbytes
        return prepared

    def _make_room(self, name: str, size: int) -> None:
        if size > self.use.max_bytes:
            raise AdapterTooLargeError(f"{name}: takes {size:,} bytes, the bank may hold {self.use.max_bytes:,}")
        while self.use.bytes + size > self.use.max_bytes:
            self._drop(next(iter(self._ready)))
            self.use.evictions += 1

    def _drop(self, name: str) -> None:
        _, dropped = self._ready.pop(name)
        self.use.adapters -= 1
        self.use.bytes -= dropped.nbytes

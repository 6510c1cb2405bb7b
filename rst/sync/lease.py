"""A lock for stores without locks: its holder keeps rewriting a file, and others break the lock once it stays the same.

If the store cannot create a file exclusively, two processes that find it free both write it; the one that reads back
its own token holds the lock.
"""

import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rst.sync.errors import ChainConflictError

EXPIRES = 60.0  # seconds without a renewal, after which the holder counts as dead
_RENEWALS, _POLL = 6, 0.2
_HERE: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)  # not every store distinguishes threads


@contextmanager
def lease(filesystem: Any, path: str, patience: float) -> Iterator[None]:
    """Hold a lease on `path` of an `fsspec.AbstractFileSystem`.

    Raises:
        ChainConflictError: another process holds it, and renews it, for `patience` seconds.
    """
    deadline, here = time.monotonic() + patience, _HERE[filesystem.unstrip_protocol(path)]
    if not here.acquire(timeout=patience):
        raise ChainConflictError(f"another thread has been publishing here for {patience:.0f} s", file=path)
    try:
        token = _acquire(filesystem, path, deadline, patience)
        stop = threading.Event()
        renewal = threading.Thread(target=_renew, args=(filesystem, path, token, stop), daemon=True)
        renewal.start()
        try:
            yield
        finally:
            stop.set()
            renewal.join()
            with suppress(OSError):  # the lease expires on its own
                if _holder(filesystem, path) == token:
                    filesystem.rm_file(path)
    finally:
        here.release()


def _acquire(filesystem: Any, path: str, deadline: float, patience: float) -> str:
    token, seen, since = uuid.uuid4().hex, "", time.monotonic()
    while True:
        with suppress(FileExistsError):
            filesystem.pipe_file(path, token.encode(), mode="create")
        found = _read(filesystem, path)
        if found == token:
            return token
        if found != seen:
            seen, since = found, time.monotonic()
        elif found and time.monotonic() - since > EXPIRES:
            filesystem.rm_file(path)
        if time.monotonic() > deadline:
            raise ChainConflictError(f"another publisher has held the lease for {patience:.0f} s", file=path)
        time.sleep(_POLL)


def _renew(filesystem: Any, path: str, token: str, stop: threading.Event) -> None:
    renewals = 0
    while not stop.wait(EXPIRES / _RENEWALS):
        renewals += 1
        with suppress(OSError):  # the store does not answer now; the next renewal may succeed
            if _holder(filesystem, path) == token:
                filesystem.pipe_file(path, f"{token} {renewals}".encode())


def _holder(filesystem: Any, path: str) -> str:
    return _read(filesystem, path).partition(" ")[0]


def _read(filesystem: Any, path: str) -> str:
    filesystem.invalidate_cache(path)
    try:
        return str(filesystem.cat_file(path).decode(errors="replace"))
    except FileNotFoundError:
        return ""

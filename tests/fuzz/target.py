"""What is fuzzed, and what must hold of any bytes: a valid object, or an `RSTError` that names the file."""

import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rst import RSTError
from tests.fuzz.byte_mutation import mutate_bytes

_PATIENCE = 20  # seconds of processor time, as other work may share the machine
_PEAK = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_LEAST_MEMORY, _MEMORY_OF_A_BYTE = 128 << 20, 2 << 10
_CORPUS = Path(__file__).parent / "corpus"
_ALLOCATION = ("can't allocate", "unable to allocate", "memoryerror", "out of memory")


@dataclass(frozen=True)
class Target:
    """One reader.

    Attributes:
        name: on the command line, and of its folder of regressions.
        file_name: of the file that is altered, inside the folder that `prepare` fills.
        seeds: honest contents of the file.
        mutate: alters contents in a way that gets past the first check.
        read: reads the file; what it raises must name it.
        use: does with the object what users do; what it raises must be an `RSTError`.
        prepare: puts into a fresh folder what else must be there.
    """

    name: str
    file_name: str
    seeds: Callable[[], list[bytes]]
    mutate: Callable[[random.Random, bytes], bytes]
    read: Callable[[Path], Any]
    use: Callable[[Any], object] = lambda _: None
    prepare: Callable[[Path], object] = lambda _: None

    def altered(self, rng: random.Random, contents: bytes) -> bytes:
        """The contents changed once, by the target's own way wherever that can still read them."""
        try:
            return self.mutate(rng, contents)
        except Exception:  # of a mutation that meets what an earlier one has left
            return mutate_bytes(rng, contents)

    def regressions(self) -> list[bytes]:
        """Files that once were not refused as they should be, in `corpus/`, as hexadecimal text."""
        return [bytes.fromhex(path.read_text()) for path in sorted((_CORPUS / self.name).glob("*.hex"))]


class FuzzError(Exception):
    """What must not happen."""


def judge(target: Target, folder: Path, contents: bytes) -> str:
    """Read one file; returns "accepted", "refused" or "unused" (read, but refused when used).

    Raises:
        FuzzError: another exception, a message without the file's name, more memory than the file's size allows, or
            more than 20 seconds of processor time.
    """
    path = folder / target.file_name
    path.write_bytes(contents)
    before = set(folder.parent.rglob("*"))
    _reset_peak()
    resident = _memory("VmRSS")
    with _in_time():
        verdict = _verdict(target, path)
    spent = _memory("VmHWM") - resident
    if spent > _LEAST_MEMORY + _MEMORY_OF_A_BYTE * len(contents):
        raise FuzzError(f"{spent >> 20} MiB for a file of {len(contents)} bytes")
    if appeared := set(folder.parent.rglob("*")) - before:
        raise FuzzError(f"appeared: {sorted(map(str, appeared))}")
    return verdict


def limit_memory(spare: int) -> None:
    """Let this process have so many bytes of address space more than it has, so that a hostile size is noticed."""
    import resource

    mapped = _memory("VmSize")
    if mapped:
        resource.setrlimit(resource.RLIMIT_AS, (mapped + spare, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _verdict(target: Target, path: Path) -> str:
    try:
        found = target.read(path)
    except RSTError as error:
        _check_message(error, path)
        return "refused"
    except BaseException as error:
        raise FuzzError(f"reading: {type(error).__name__}: {str(error)[:300]}") from error
    try:
        target.use(found)
    except RSTError as error:
        _check_message(error, None)
        return "unused"
    except BaseException as error:
        raise FuzzError(f"using: {type(error).__name__}: {str(error)[:300]}") from error
    return "accepted"


def _check_message(error: RSTError, path: Path | None) -> None:
    text = str(error)
    if path is not None and path.name not in text and path.parent.name not in text:
        raise FuzzError(f"does not name the file: {text[:300]}") from error
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or any(words in str(cause).lower() for words in _ALLOCATION):
            raise FuzzError(f"asked for too much memory: {text[:300]}") from error
        cause = cause.__cause__ or cause.__context__


@contextmanager
def _in_time() -> Iterator[None]:
    def late(*_: object) -> None:
        raise FuzzError(f"takes more than {_PATIENCE} s")

    previous = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, _PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


def _reset_peak() -> None:
    try:
        _PEAK[0].write_text("5")
    except OSError:  # not Linux, or not allowed: then memory is not looked at
        return


def _memory(field: str) -> int:
    """Bytes; 0 where the system does not tell."""
    try:
        lines = _PEAK[1].read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:")), 0)

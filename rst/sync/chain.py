"""The layout of a chain in its store: a file per step, anchors, and a pointer that is written last.

- `delta-0000000007.safetensors`: what turns step 6 into step 7, a delta as `rst.delta.file` writes it. Its header
  (`config`, key "sync") names the chain, both steps, and the state of all weights before and after.
- `anchor-0000000100.safetensors`: all weights of step 100, see `rst.sync.anchor`. There is one of step 0.
- `latest.json`: the pointer. A step is published once this names it; what is there beyond does not count.

The states of version 1 differ from those of version 2, see `rst.sync.state`. A chain keeps its version: a publisher
that continues it writes version 1, which older releases can read.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rst.delta.file import load_delta
from rst.delta.sparse_delta import SparseDelta
from rst.errors import CheckpointError, DeltaFormatError
from rst.files.atomic import atomic_write
from rst.files.strict_json import check_depth, parse_json, strings, to_json, typed
from rst.numerics.fingerprint import digest_text
from rst.sync.errors import ChainDamageError, ChainGapError
from rst.sync.state import STATE_VERSION
from rst.sync.store import Store

FORMAT, VERSIONS = "rst-sync", (1, STATE_VERSION)
_READS = f"this library reads {' and '.join(map(str, VERSIONS))}"
POINTER = "latest.json"
HEADER_KEY = "sync"
_DIGITS, _MOST_DIGITS = 10, 18
_MOST_STEPS = 10**_MOST_DIGITS
_STATES_KEPT = 256  # 5 kB, rewritten with each step
# Short names of a link's fields.
_LINK_KEYS = {
    "chain": ("chain", str),
    "after": ("from_step", int),
    "step": ("to_step", int),
    "applies_to": ("state_before", str),
    "yields": ("state_after", str),
}
_VERSION_KEY = "version"  # left out in version 1
_ANCHOR, _DELTA, _SUFFIX = "anchor-", "delta-", ".safetensors"


@dataclass(frozen=True)
class Link:
    """What a file's header says about its place in a chain. An anchor links its step to itself.

    Attributes:
        chain: the chain's identity.
        from_step: the step it applies to.
        to_step: the step that it leads to.
        state_before: `fingerprint_state` of all weights at `from_step`.
        state_after: the same, at `to_step`.
        version: version of the chain.
    """

    chain: str
    from_step: int
    to_step: int
    state_before: str
    state_after: str
    version: int = STATE_VERSION

    def record(self) -> dict[str, Any]:
        """Return the link as header entries."""
        entries = {key: getattr(self, name) for key, (name, _) in _LINK_KEYS.items()}
        return entries if self.version == 1 else {**entries, _VERSION_KEY: self.version}


@dataclass(frozen=True)
class Pointer:
    """How far a chain has been published.

    Attributes:
        chain: the chain's identity.
        step: the last published step.
        base: the state of step 0.
        states: the states of the last 256 steps up to `step`, or of all if there are fewer.
        version: 2, or 1 if each weight is hashed alone.
    """

    chain: str
    step: int
    base: str
    states: tuple[str, ...] = field(repr=False)
    version: int = STATE_VERSION

    @property
    def state(self) -> str:
        """The state of the last published step."""
        return self.states[-1]

    def step_of(self, state: str) -> int | None:
        """Return the last step with this state, if the pointer still holds it."""
        known = {self.base: 0} | {found: self._first + number for number, found in enumerate(self.states)}
        return known.get(state)

    def expected(self, step: int) -> str | None:
        """Return the state of a step; None if the pointer no longer holds it."""
        if step >= self._first:
            return self.states[step - self._first]
        return self.base if step == 0 else None

    def advanced(self, state: str) -> "Pointer":
        """Return the pointer after one more step."""
        return replace(self, step=self.step + 1, states=(*self.states, state)[-_STATES_KEPT:])

    @property
    def _first(self) -> int:
        return self.step - len(self.states) + 1


def delta_name(step: int) -> str:
    """Return the file name of the delta that leads to a step."""
    return f"{_DELTA}{step:0{_DIGITS}d}{_SUFFIX}"


def anchor_name(step: int) -> str:
    """Return the file name of a step's anchor."""
    return f"{_ANCHOR}{step:0{_DIGITS}d}{_SUFFIX}"


def step_of_name(name: str) -> int | None:
    """Return the step of a delta's or an anchor's file; None for other names."""
    kind = _ANCHOR if name.startswith(_ANCHOR) else _DELTA
    digits = name.removeprefix(kind).removesuffix(_SUFFIX)
    if not (digits.isascii() and digits.isdecimal() and _DIGITS <= len(digits) <= _MOST_DIGITS):
        return None
    return int(digits) if name == f"{kind}{int(digits):0{_DIGITS}d}{_SUFFIX}" else None


def anchor_steps(store: Store, until: int) -> list[int]:
    """Return the steps up to `until` that have an anchor, in descending order."""
    steps = [step_of_name(name) for name in store.names() if name.startswith(_ANCHOR)]
    return sorted((step for step in steps if step is not None and step <= until), reverse=True)


def read_pointer(store: Store) -> Pointer:
    """Read how far the chain has been published.

    Raises:
        ChainGapError: there is no chain.
        ChainDamageError: the pointer is damaged, or has an unknown version.
    """
    where = f"{store.location}/{POINTER}"
    try:
        with store.fetch(POINTER) as path:
            text = path.read_bytes()
    except ChainGapError as error:
        raise ChainGapError(
            "no chain starts here yet; rst.sync.Publisher and rst sync publish start one", file=error.file
        ) from error
    try:
        record = check_depth(parse_json(text))
        found, version = record.pop("digest"), record["format_version"]
        if record["format"] != FORMAT or type(version) is not int or version not in VERSIONS:
            raise ChainDamageError(f"format version {str(version)[:99]}; {_READS}", file=where)
        if found != digest_text(to_json(record)):
            raise ChainDamageError(
                "the digest does not match the contents; the file was altered or damaged", file=where
            )
        states = tuple(strings(record["states"], "states"))
        chain, step, base = (typed(record, key, kind) for key, kind in (("chain", str), ("step", int), ("base", str)))
        pointer = Pointer(chain, step, base, states, version)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ChainDamageError(f"not a chain's pointer ({type(error).__name__}: {error})", file=where) from error
    if not 0 < len(states) <= pointer.step + 1 <= _MOST_STEPS:
        raise ChainDamageError(f"{len(states)} states of {pointer.step + 1} steps", file=where)
    return pointer


def write_pointer(store: Store, pointer: Pointer) -> None:
    """Publish a step: everything that the pointer names must already be in the store."""
    record: dict[str, Any] = {"format": FORMAT, **asdict(pointer), "states": list(pointer.states)}
    record["format_version"] = record.pop("version")
    text = to_json(record | {"digest": digest_text(to_json(record))})

    def write(path: Any) -> None:
        with atomic_write(path) as temporary:
            temporary.write_text(text + "\n")

    store.put(POINTER, write)


def link_of(delta: SparseDelta, source: str = "delta") -> Link:
    """Read a delta's place in its chain. Raises `ChainDamageError`, naming `source`, if it has none."""
    return read_link(delta.config.get(HEADER_KEY), source)


def read_link(record: Any, source: str) -> Link:
    """Read the header entries that `Link.record` wrote. Raises `ChainDamageError`."""
    if not isinstance(record, Mapping):
        raise ChainDamageError("its header names no chain; was it written by a Publisher?", file=source)
    if record.keys() - {_VERSION_KEY} != _LINK_KEYS.keys():
        raise ChainDamageError(f"its header's link is malformed: it has {sorted(record)}"[:999], file=source)
    try:
        version = typed(record, _VERSION_KEY, int) if _VERSION_KEY in record else 1
        link = Link(**{name: typed(record, key, kind) for key, (name, kind) in _LINK_KEYS.items()}, version=version)
    except TypeError as error:
        raise ChainDamageError(f"its header's link is malformed ({error})", file=source) from error
    if link.version not in VERSIONS:
        raise ChainDamageError(f"of a chain of version {str(link.version)[:99]}; {_READS}", file=source)
    if not 0 <= link.from_step <= link.to_step < _MOST_STEPS:
        raise ChainDamageError(
            f"its header's steps, from {link.from_step} to {link.to_step}, are malformed", file=source
        )
    return link


def read_delta(store: Store, step: int) -> tuple[SparseDelta, Link, int]:
    """Read and check the file of one step; the third return value is its size in bytes.

    Raises:
        ChainGapError: the file does not exist.
        ChainDamageError: it is damaged.
    """
    name = delta_name(step)
    where = f"{store.location}/{name}"
    with store.fetch(name) as path:
        try:
            delta, size = load_delta(path), path.stat().st_size
        except (CheckpointError, FileNotFoundError) as error:  # pruned since it was found
            raise ChainGapError("no such file", file=where) from error
        except DeltaFormatError as error:
            raise ChainDamageError(f"step {step}: {error.reason}", file=where, parameter=error.parameter) from error
    return delta, link_of(delta, where), size

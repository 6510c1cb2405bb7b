"""Checking a pickle's instructions before they are run: they must not cost more than its bytes explain.

Hashing a tuple visits all of its parts, however often they are shared: forty tuples of two, each twice in the next, are
a key that takes days. Integers that are equal modulo 2^61 - 1 share a hash, so that a dict or a set of n of them takes
O(n^2). A call, such as `set` on a list, copies its argument, and a few bytes repeat the call on the same list.
"""

import pickletools
from collections.abc import Iterable
from math import prod
from typing import Any, BinaryIO, cast

from rst.files.budget import Budget, BudgetError

_COLLIDE_FROM = (1 << 61) - 1
_STEPS_A_COPY = 16  # per object: a set entry takes this many times the memory of an instruction
_TAKES_A_SIZE = ("bytearray", "Tensor", "Storage")
_REBUILDS = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_qtensor", "_rebuild_from_type_v2")
_MARK = object()
_NOTHING: list[Any] = []
_EMPTY = object()  # an empty list, dict or set: a million of them must not take a million groups


def check_pickle(file: BinaryIO, budget: Budget) -> None:
    """Check one pickle, up to its end.

    Raises:
        BudgetError: running it would exceed the budget.
        ValueError: it is not a pickle, or takes from an empty stack.
    """
    scan = _Scan(budget)
    try:
        for opcode, argument, _ in pickletools.genops(cast(BinaryIO, _Within(file, budget.file_bytes))):
            scan.follow(opcode, argument)
    except (IndexError, KeyError, TypeError) as error:
        raise ValueError("its instructions use values that do not exist") from error


class _Within:
    """A file that limits reads to its size: the unpickler would allocate the length that a string claims."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.tell, self.readline = file.tell, file.readline
        self._file, self._size = file, size

    def read(self, length: int) -> bytes:
        return self._file.read(min(length, max(self._size - self.tell(), 0)))


class _Group:
    """A tuple, list, dict or set, or what a call has made of some.

    Attributes:
        size: number of objects visited to hash all of its contents; of a dict, its keys.
        colliding: number of its contents that can be made to share a hash.
        parts: its direct contents; for the result of a call, also their contents.
        weight: number of objects visited to hash it. Growing objects cannot be hashed.
    """

    __slots__ = ("colliding", "parts", "size", "weight")

    def __init__(self, parts: Iterable[Any] = (), grows: bool = False) -> None:
        self.size = self.colliding = 0
        self.parts: list[Any] = _NOTHING  # shared, so that a million empty lists do not take a million more
        if parts:
            self.add(parts)
        self.weight = 1 if grows else 1 + self.size

    def add(self, parts: Iterable[Any]) -> None:
        if self.parts is _NOTHING:
            self.parts = []
        for part in parts:
            self.size += part.weight if type(part) is _Group else 1
            self.colliding += _can_collide(part)
            self.parts.append(part)

    def integers(self) -> list[int]:
        return [part for part in self.parts if type(part) is int]


def _can_collide(part: Any) -> bool:
    return type(part) is _Group or (type(part) is int and not -_COLLIDE_FROM < part < _COLLIDE_FROM)


class _Scan:
    """The stack of an unpickler, with stand-ins: groups, integers and class names as such, None for everything else."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._colliding = self._keys = 0

    def follow(self, opcode: Any, argument: Any) -> None:
        name = opcode.name
        if name in ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"):
            self._stack.append(_EMPTY)
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self._memo[int(argument)] = self._top()
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._top()
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            self._push(self._memo[int(argument)])
        elif name == "MARK":
            self._stack.append(_MARK)
        elif name.startswith("TUPLE"):
            self._push(_Group(self._above_mark() if name == "TUPLE" else self._pop(int(name[5:]))))
        elif name in ("LIST", "DICT", "FROZENSET"):
            self._make(name, self._above_mark())
        elif name in ("APPEND", "APPENDS"):
            parts = self._above_mark() if name == "APPENDS" else self._pop(1)
            self._add(parts)
        elif name in ("SETITEM", "SETITEMS", "ADDITEMS"):
            parts = self._pop(2) if name == "SETITEM" else self._above_mark()
            self._set(parts if name == "ADDITEMS" else parts[::2])
        elif name == "DUP":
            self._push(self._top())
        elif name == "REDUCE":
            self._call(*self._pop(2))
        elif name == "BUILD":
            state = self._pop(1)
            self._check_extent("state", state[0])
            self._copy(state)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            if argument is None:
                self._pop(2)
            self._stack.append(str(argument))
        else:
            self._other(opcode, argument)

    def _other(self, opcode: Any, argument: Any) -> None:
        """Process an instruction whose result matters only if it is an integer."""
        before, after = opcode.stack_before, opcode.stack_after
        if any(kind.name == "mark" for kind in before):
            self._above_mark()
            before = before[: [kind.name for kind in before].index("mark")]
        if before:
            self._pop(len(before))
        for _ in after:
            self._push(argument if type(argument) is int else None)

    def _top(self) -> Any:
        """Return the top of the stack, which may now be referenced twice, or grow."""
        if self._stack[-1] is _EMPTY:
            self._stack[-1] = _Group(grows=True)
        return self._stack[-1]

    def _push(self, item: Any) -> None:
        if type(item) is _Group:
            self._budget.take("steps", item.weight)
        elif _can_collide(item):
            self._colliding += 1
            self._budget.take("steps", self._colliding)
        self._stack.append(item)

    def _pop(self, count: int) -> list[Any]:
        parts = self._stack[len(self._stack) - count :]
        if len(parts) < count or _MARK in parts:
            raise IndexError(count)
        del self._stack[-count:]
        return parts

    def _above_mark(self) -> list[Any]:
        parts: list[Any] = []
        while (item := self._stack.pop()) is not _MARK:
            parts.append(item)
        return parts[::-1]

    def _make(self, name: str, parts: list[Any]) -> None:
        self._push(_Group(grows=name != "FROZENSET"))
        if name == "LIST":
            self._add(parts)
        else:
            self._set(parts[::2] if name == "DICT" else parts)

    def _add(self, parts: list[Any]) -> None:
        if type(group := self._top()) is _Group:
            group.add(parts)

    def _set(self, keys: list[Any]) -> None:
        """Add keys to a set, and charge groups among them: tuples of integers can be made to share a hash too."""
        for key in keys:
            if type(key) is _Group:
                self._keys += 1
                self._budget.take("steps", self._keys)
        self._add(keys)

    def _call(self, called: Any, arguments: Any) -> None:
        size = prod(max(part, 1) for part in arguments.integers()) if type(arguments) is _Group else 0
        if str(called).endswith(_TAKES_A_SIZE) and size > self._budget.file_bytes:
            raise BudgetError(f"makes {called} of {size}, in a file of {self._budget.file_bytes} bytes")
        if str(called).endswith(_REBUILDS) and type(arguments) is _Group:
            for one in (arguments, *arguments.parts):
                self._check_extent(str(called), one)
        self._push(self._copy([arguments]))

    def _check_extent(self, called: str, arguments: Any) -> None:
        """Check storage, offset, size and stride: torch enlarges a storage that is too small for them."""
        match arguments.parts[1:4] if type(arguments) is _Group else ():
            case [int(offset), _Group() as size, _Group() as stride]:
                pairs = list(zip(size.integers(), stride.integers(), strict=False))
                extent = offset + 1 + sum((length - 1) * step for length, step in pairs)
                if extent > self._budget.file_bytes and all(length for length, _ in pairs):
                    raise BudgetError(f"{called} reaches to {extent}, in a file of {self._budget.file_bytes} bytes")

    def _copy(self, given: list[Any]) -> _Group:
        """Charge the cost of making sets of all arguments, and of all their direct contents."""
        copy = _Group()
        for group in given:
            for one in (group, *group.parts) if type(group) is _Group else ():
                if type(one) is _Group:
                    copy.size += one.size
                    copy.colliding += one.colliding
                    copy.parts = [*copy.parts, *one.parts]
        copy.weight += copy.size
        self._budget.take("steps", _STEPS_A_COPY * copy.size + copy.colliding * (copy.colliding + 1) // 2)
        return copy

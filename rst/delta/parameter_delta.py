"""The change of one parameter: its positions, its values, and the few tuned values that no residual can express."""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from rst.errors import ConfigError, NonFiniteError, ParameterMismatchError, WrongBaseError
from rst.numerics.difference import changed_positions, changed_positions_of_each, may_hold_nan
from rst.numerics.dtypes import NAME_OF_DTYPE
from rst.numerics.exactness import (
    RESIDUAL_DTYPES,
    bit_equal,
    bits,
    exact_residuals,
    from_ordered_keys,
    is_plain,
    ordered_keys,
    same_form,
)
from rst.numerics.fingerprint import digest
from rst.numerics.rounding import at_most

Op = Literal["add", "replace", "step"]
WantedOp = Literal["add", "replace", "step", "smallest"]  # the last stands for the one of the three that packs smallest
_INT32_LIMIT = 1 << 31


@dataclass(frozen=True)
class BaseDigests:
    """Digests of the base: `whole` of all elements of w0, `touched` of those at the changed positions."""

    whole: str
    touched: str


@dataclass(frozen=True, eq=False)
class ParameterDelta:
    """The sparse change of one parameter from w0 to wt, exact by construction.

    `op` determines what `values` are:

    - "add": residuals `w_sp = wt - w0` (Eq. 16), and the tuned value itself where no residual reproduces it.
    - "replace": the tuned values. Applying them is idempotent and needs no base. Dtypes without residuals have no other
      form that holds values.
    - "step": `key(wt) - key(w0)` of `rst.numerics.exactness.ordered_keys`, modulo 2^width. These are small integers
      that compress well and whose sums are exact.

    Attributes:
        indices: the flat row-major positions, sorted and unique, shape (nnz,), int32 (int64 if numel >= 2^31).
        values: the values, shape (nnz,). Residuals and tuned values have the parameter's dtype, and all residuals are
            finite; steps have the signed integer dtype of its width.
        shape: the parameter's shape.
        dtype: the parameter's dtype.
        exact_indices: the positions among `indices` where the residual misses the tuned value, shape (m,). Empty unless
            `op` is "add".
        exact_values: the tuned values at these positions, shape (m,), in the parameter's dtype.
        base: the digests of w0; None after arithmetic.
        op: the meaning of `values`. Float8 and integers have no "add".
    """

    indices: Tensor
    values: Tensor
    shape: tuple[int, ...]
    dtype: torch.dtype
    exact_indices: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int32))
    exact_values: Tensor | None = None
    base: BaseDigests | None = None
    op: Op = "add"
    _writes_when_checked: tuple[int, ...] | None = field(default=None, init=False, repr=False)

    @classmethod
    def between(
        cls,
        name: str,
        base: Tensor,
        tuned: Tensor,
        threshold: float | None = None,
        op: Op = "add",
        *,
        ties: int | None = None,
    ) -> "ParameterDelta":
        """Extract the change from `base` to `tuned`: the entries that Eq. 17 keeps, without full-size temporaries.

        Args:
            name: the parameter's name, for messages.
            base: w0, any shape.
            tuned: wt, same shape and dtype.
            threshold: tau, for dtypes with residuals. None keeps every entry whose bits differ.
            op: what to store. For dtypes without residuals, "replace" is stored instead of "add".
            ties: the number of changes equal to `threshold` to keep, from the first on. If given, `threshold` is not
                rounded to the dtype.

        Raises:
            ParameterMismatchError: the shapes or dtypes differ, or the dtype is complex.
            NonFiniteError: `tuned` contains a NaN.
        """
        check_carried(name, tuned)
        check_carried(name, base)
        positions, origin, target = changed_weights(name, base, tuned)
        if threshold is not None and base.dtype in RESIDUAL_DTYPES:
            keep = _kept((target - origin).abs_(), threshold, ties)
            positions, origin, target = positions[keep], origin[keep], target[keep]
        digests = BaseDigests(digest(base), digest(origin)) if positions.numel() else None
        return cls.at(positions, origin, target, base.shape, digests, op)

    @classmethod
    def at(
        cls,
        positions: Tensor,
        origin: Tensor,
        target: Tensor,
        shape: Sequence[int],
        digests: BaseDigests | None,
        op: Op = "add",
    ) -> "ParameterDelta":
        """Express the change from `origin`, w0 at `positions`, to `target`, wt there; all have shape (nnz,)."""
        indices, dtype = positions.to(index_dtype(torch.Size(shape).numel())), origin.dtype
        nothing, op = indices[:0], stored_op(op, dtype)
        if op == "replace":
            return cls(indices, target, tuple(shape), dtype, nothing, target[:0], digests, op)
        if op == "step":
            steps = ordered_keys(target) - ordered_keys(origin)
            return cls(indices, steps, tuple(shape), dtype, nothing, target[:0], digests, op)
        residuals, failed = exact_residuals(origin, target)
        return cls(indices, residuals, tuple(shape), dtype, indices[failed], target[failed], digests, op)

    @property
    def nnz(self) -> int:
        """The number of changed weights."""
        return self.indices.numel()

    @property
    def numel(self) -> int:
        """The number of weights of the parameter."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes of all arrays in memory."""
        arrays = (self.indices, self.values, self.exact_indices, self.overlay)
        return sum(array.nbytes for array in arrays)

    @property
    def density(self) -> float:
        """The changed share of the parameter, in [0, 1]; 0 for an empty parameter."""
        return self.nnz / self.numel if self.numel else 0.0

    @property
    def overlay(self) -> Tensor:
        """The absolute values at `exact_indices`; empty if there are none."""
        return torch.empty(0, dtype=self.dtype) if self.exact_values is None else self.exact_values

    @property
    def is_checked(self) -> bool:
        """Whether `mark_checked` was called, and torch has counted no write to an array since."""
        return self._writes_when_checked is not None and self._writes_when_checked == self._writes()

    def mark_checked(self) -> None:
        """Record, for `rst.delta.validation`, that the change is well formed. Copies do not inherit the record."""
        object.__setattr__(self, "_writes_when_checked", self._writes())

    def _writes(self) -> tuple[int, ...] | None:
        arrays = (self.indices, self.values, self.exact_indices, self.overlay)
        try:
            return tuple([array._version for array in arrays])
        except RuntimeError:  # torch does not count writes to tensors made in inference mode
            return None

    def __getstate__(self) -> dict[str, object]:
        """Return what is pickled and copied, without the record that the change was checked."""
        return {**self.__dict__, "_writes_when_checked": None}

    def tuned_values(self, origin: Tensor) -> Tensor:
        """Compute wt at `indices` from `origin`, which is w0 there; both have shape (nnz,)."""
        if self.op == "replace":
            return self.values
        if self.op == "step":
            return from_ordered_keys(ordered_keys(origin) + self.values, self.dtype)
        tuned = origin + self.values
        tuned[torch.searchsorted(self.indices, self.exact_indices)] = self.overlay
        return tuned

    def check_touched(self, name: str, found: str, source: str | None = None) -> None:
        """Raise `WrongBaseError` if a digest of w0 at `indices` is recorded and differs from `found`."""
        if self.base is not None and found != self.base.touched:
            raise WrongBaseError(
                f"the base's values at the {self.nnz} changed positions are not those the delta was made from",
                file=source,
                parameter=name,
            )

    def to(self, device: torch.device | str) -> "ParameterDelta":
        """Copy to a device."""
        return replace(
            self,
            indices=self.indices.to(device),
            values=self.values.to(device),
            exact_indices=self.exact_indices.to(device),
            exact_values=self.overlay.to(device),
        )

    def to_coo(self) -> Tensor:
        """Return the residuals as a coalesced N-D `torch.sparse_coo_tensor`, without `exact_values`.

        Raises:
            ParameterMismatchError: the values are not residuals.
        """
        self._refuse("replace", "step")
        axes = torch.unravel_index(self.indices.long(), self.shape) if self.shape else ()
        where = torch.stack(axes) if axes else torch.empty(0, self.nnz, dtype=torch.int64)
        return torch.sparse_coo_tensor(where, self.values, self.shape, is_coalesced=True, check_invariants=True)

    def __eq__(self, other: object) -> bool:
        """Compare positions, values (bit for bit), shape, dtype and base."""
        if not isinstance(other, ParameterDelta):
            return NotImplemented
        return (
            (self.shape, self.dtype, self.base, self.op) == (other.shape, other.dtype, other.base, other.op)
            and torch.equal(self.indices, other.indices)
            and torch.equal(self.exact_indices, other.exact_indices)
            and bit_equal(self.values, other.values)
            and bit_equal(self.overlay, other.overlay)
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """Show sizes, not arrays."""
        return f"ParameterDelta({self.nnz} of {self.numel} {self.dtype} {self.shape}, {self.overlay.numel()} exact)"

    def __mul__(self, factor: float) -> "ParameterDelta":
        """Scale the residuals (task arithmetic). The result is rounded, so it has no `exact_values`."""
        self._refuse("replace", "step")
        return self._without_base(self.indices, self.values * factor)

    def __add__(self, other: "ParameterDelta") -> "ParameterDelta":
        """Add two changes of one parameter: residuals, rounded and without `exact_values`, or steps, exactly."""
        if (self.shape, self.dtype, self.op) != (other.shape, other.dtype, other.op):
            raise ParameterMismatchError(
                f'cannot add op "{other.op}" {other.dtype} {other.shape} to op "{self.op}" {self.dtype} {self.shape}'
            )
        self._refuse("replace")
        indices, slot = torch.unique(torch.cat([self.indices, other.indices]), return_inverse=True)
        values = torch.zeros(indices.numel(), dtype=self.values.dtype, device=self.values.device)
        first = self.indices.numel()
        values[slot[:first]] = self.values
        values[slot[first:]] += other.values
        return self._without_base(indices, values)

    def cast(self, dtype: torch.dtype) -> "ParameterDelta":
        """Cast the values to another floating dtype, at the same positions. Dtypes without residuals are not cast.

        Raises:
            ParameterMismatchError: the values are steps, which belong to one dtype, or `dtype` cannot hold a value.
        """
        if dtype == self.dtype or self.dtype not in RESIDUAL_DTYPES:
            return self
        if self.op == "step" or dtype not in RESIDUAL_DTYPES:
            raise ParameterMismatchError(f'{self.dtype} values with op "{self.op}" cannot be cast to {dtype}')
        values, exact = self.values.to(dtype), self.overlay.to(dtype)
        if lost := int((self.values.isfinite() & ~values.isfinite()).sum()):
            raise ParameterMismatchError(f"{lost} of {values.numel()} values are too large for {dtype}")
        return ParameterDelta(self.indices, values, self.shape, dtype, self.exact_indices, exact, None, self.op)

    def _without_base(self, indices: Tensor, values: Tensor) -> "ParameterDelta":
        changed = values != 0
        nothing = torch.empty(0, dtype=self.dtype, device=values.device)
        return replace(
            self,
            indices=indices[changed],
            values=values[changed],
            exact_indices=indices[:0],
            exact_values=nothing,
            base=None,
        )

    def _refuse(self, *ops: Op) -> None:
        if self.op in ops:
            raise ParameterMismatchError(
                f'the {self.dtype} values are stored with op "{self.op}", which has no residuals; rst.convert '
                f"computes residuals for "
                f"{', '.join(str(dtype).removeprefix('torch.') for dtype in RESIDUAL_DTYPES)}"
            )


def changed_weights(name: str, base: Tensor, tuned: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find where two tensors of one device differ in any bit.

    Returns:
        `(positions, origin, target)`: the sorted flat positions, int64, and w0 and wt there; all have shape (nnz,).

    Raises:
        ParameterMismatchError: the shapes or dtypes differ.
        NonFiniteError: a changed weight is NaN.
    """
    check_like(name, tuned, base)
    base, tuned = base.detach().reshape(-1), tuned.detach().reshape(-1)
    return _weights_at(name, base, tuned, *changed_positions(base, tuned))


def changed_weights_of_each(named: Iterable[tuple[str, Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield `changed_weights` of each name, w0 and wt; on a GPU, many are compared at once. Raises as it does."""
    waiting: deque[tuple[str, Tensor, Tensor]] = deque()

    def flat_pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for name, base, tuned in named:
            check_like(name, tuned, base)
            waiting.append((name, base.detach().reshape(-1), tuned.detach().reshape(-1)))
            yield waiting[-1][1:]

    for positions, may_have_nan in changed_positions_of_each(flat_pairs()):
        yield _weights_at(*waiting.popleft(), positions, may_have_nan)


def _weights_at(
    name: str, base: Tensor, tuned: Tensor, positions: Tensor, may_have_nan: bool
) -> tuple[Tensor, Tensor, Tensor]:
    target = gather(tuned, positions)
    if may_have_nan and (nans := count_nans(target)):  # a NaN that the base has in the same place is no change
        raise NonFiniteError(f"{nans} of {tuned.numel()} weights are NaN", parameter=name)
    return positions, gather(base, positions), target


def _kept(change: Tensor, threshold: float, ties: int | None) -> Tensor:
    """Return a mask of the changes to keep. A change that is NaN, because w0 is, is kept."""
    if ties is None:
        return ~(change <= threshold)
    keep = ~(change <= at_most(threshold, change.dtype))
    if ties:
        keep[(change == threshold).nonzero().squeeze(1)[:ties]] = True
    return keep


def check_op(op: str, known: Sequence[str] = get_args(Op)) -> None:
    """Raise `ConfigError` for an operation that is unknown, or not allowed here."""
    if op not in known:
        raise ConfigError(f"op={op!r}: choose one of {list(known)}")


def stored_op(op: Op, dtype: torch.dtype) -> Op:
    """Return the operation stored for a dtype: float8 and integers have no residuals, so "add" becomes "replace"."""
    return "replace" if op == "add" and dtype not in RESIDUAL_DTYPES else op


def index_dtype(numel: int) -> torch.dtype:
    """Return the dtype of positions in a tensor of `numel` elements."""
    return torch.int32 if numel < _INT32_LIMIT else torch.int64


def check_like(name: str, found: Tensor, wanted: Tensor) -> None:
    """Raise `ParameterMismatchError` unless shape and dtype agree."""
    # The common case makes no call, because every step, swap and export comes here, for each parameter.
    if not (found.is_nested or wanted.is_nested) and (found.dtype, found.layout, found.shape) == (
        wanted.dtype,
        wanted.layout,
        wanted.shape,
    ):
        return
    if not same_form(found, wanted):
        raise ParameterMismatchError(
            f"{_form(found)} does not fit the base's {_form(wanted)}",
            parameter=name,
        )


def _form(tensor: Tensor) -> str:
    kind = "" if is_plain(tensor) else " nested" if tensor.is_nested else f" {tensor.layout} on {tensor.device.type}"
    return f"{tensor.dtype} {tuple(tensor.shape) if not tensor.is_nested else tensor.numel()}{kind}"


def is_judged(tensor: Tensor) -> bool:
    """Return whether a delta could hold a tensor. Others may have any form as long as they do not change."""
    return is_plain(tensor) and tensor.dtype in NAME_OF_DTYPE


def check_carried(name: str, tensor: Tensor) -> None:
    """Raise `ParameterMismatchError` for a tensor whose change no delta can hold, such as a complex one."""
    if not is_plain(tensor):
        raise ParameterMismatchError(
            f"{_form(tensor)}: a delta can only hold strided tensors; use exclude_modules (--exclude) to keep the "
            f"base's",
            parameter=name,
        )
    check_real(name, tensor)
    if tensor.dtype not in NAME_OF_DTYPE:
        raise ParameterMismatchError(
            f"a delta cannot hold {tensor.dtype}; use exclude_modules (--exclude) to keep the base's tensor",
            parameter=name,
        )


def check_own_memory(name: str, tensor: Tensor) -> None:
    """Raise `ParameterMismatchError` for an expanded tensor, whose elements cannot be written one by one."""
    if tensor.is_contiguous():
        return
    if any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
        raise ParameterMismatchError(
            f"expanded to {tuple(tensor.shape)}: its elements share memory, so changing one would change others; "
            f"make the module's tensor contiguous",
            parameter=name,
        )


def check_real(name: str, tensor: Tensor) -> None:
    """Raise `ParameterMismatchError` for a complex tensor."""
    if tensor.is_complex():
        raise ParameterMismatchError(
            f"a delta cannot change {tensor.dtype} tensors; split it into real and imaginary parts, or exclude it with "
            "exclude_modules (--exclude)",
            parameter=name,
        )


def check_no_nan(name: str, tensor: Tensor) -> None:
    """Raise `NonFiniteError` if a float tensor contains a NaN."""
    if may_hold_nan(tensor) and (nans := count_nans(tensor)):
        raise NonFiniteError(f"{nans} of {tensor.numel()} weights are NaN", parameter=name)


def count_nans(tensor: Tensor) -> int:
    """Count the NaNs in a tensor of any dtype."""
    if not tensor.is_floating_point() or not tensor.numel():
        return 0
    comparable = tensor.float() if tensor.element_size() == 1 else tensor  # float8 has no isnan
    # a maximum propagates NaN, in a tenth of the time that counting takes
    return int(comparable.isnan().count_nonzero()) if comparable.amax().isnan() else 0


def gather(flat: Tensor, positions: Tensor) -> Tensor:
    """Read a 1-D tensor of any dtype at `positions`, bit for bit."""
    return bits(flat).index_select(0, positions).view(flat.dtype)

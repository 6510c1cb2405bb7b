"""The change of one parameter: where, by how much, and the few absolute values that no residual can express."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from rst.errors import NonFiniteError, ParameterMismatchError
from rst.exactness import RESIDUAL_DTYPES, bit_equal, bits, exact_residuals
from rst.fingerprint import digest

_INT32_LIMIT = 1 << 31


@dataclass(frozen=True)
class BaseDigests:
    """What the base looked like: `whole` over every element of w0, `touched` over those at the changed positions."""

    whole: str
    touched: str


@dataclass(frozen=True, eq=False)
class ParameterDelta:
    """A sparse residual `w_sp = wt - w0` (Eq. 16) of one parameter, exact by construction.

    Attributes:
        indices: flat row-major positions, sorted and unique, shape (nnz,), int32 (int64 where numel >= 2^31).
        values: residuals, shape (nnz,), in the parameter's dtype, all finite.
        shape: the parameter's shape.
        dtype: the parameter's dtype.
        exact_indices: positions, among `indices`, whose value the residual misses; shape (m,). For dtypes without a
            residual (float8, integers, bool) `indices` is empty and these are all the changes.
        exact_values: the tuned values there, shape (m,), in the parameter's dtype.
        base: digests of w0, None after arithmetic.
    """

    indices: Tensor
    values: Tensor
    shape: tuple[int, ...]
    dtype: torch.dtype
    exact_indices: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int32))
    exact_values: Tensor | None = None
    base: BaseDigests | None = None

    @classmethod
    def between(cls, name: str, base: Tensor, tuned: Tensor, keep: Tensor | None = None) -> "ParameterDelta":
        """Extract the change from `base` to `tuned`: every entry whose bits differ, if `keep` allows it.

        Args:
            name: the parameter's name, for messages.
            base: w0, any shape.
            tuned: wt, same shape and dtype.
            keep: bool mask of the same shape, None for all.

        Raises:
            ParameterMismatchError: shapes or dtypes differ, or the dtype is complex.
            NonFiniteError: `tuned` has a NaN.
        """
        check_comparable(name, base, tuned)
        flat_base, flat_tuned = base.detach().reshape(-1), tuned.detach().reshape(-1)
        changed = bits(flat_base) != bits(flat_tuned)
        if keep is not None:
            changed &= keep.reshape(-1)
        positions = changed.nonzero().squeeze(1)
        origin, target = gather(flat_base, positions), gather(flat_tuned, positions)
        digests = BaseDigests(digest(base), digest(origin))
        indices = positions.to(index_dtype(flat_base.numel()))
        shape, nothing = tuple(base.shape), indices[:0]
        if base.dtype not in RESIDUAL_DTYPES:
            return cls(nothing, target[:0], shape, base.dtype, indices, target, digests)
        residuals, failed = exact_residuals(origin, target)
        return cls(indices, residuals, shape, base.dtype, indices[failed], target[failed], digests)

    @property
    def nnz(self) -> int:
        """Number of changed weights."""
        return max(self.indices.numel(), self.exact_indices.numel())

    @property
    def numel(self) -> int:
        """Number of weights of the parameter."""
        return torch.Size(self.shape).numel()

    @property
    def density(self) -> float:
        """Changed share of the parameter, in [0, 1]; 0 for an empty one."""
        return self.nnz / self.numel if self.numel else 0.0

    @property
    def touched(self) -> Tensor:
        """All changed positions, whatever the dtype."""
        return self.indices if self.dtype in RESIDUAL_DTYPES else self.exact_indices

    @property
    def overlay(self) -> Tensor:
        """The absolute values at `exact_indices`; empty if there are none."""
        return self.values[:0] if self.exact_values is None else self.exact_values

    def tuned_values(self, origin: Tensor) -> Tensor:
        """Compute wt at `touched` from `origin`, w0 at `touched`: addition, then the overlay. Shape (nnz,)."""
        if self.dtype not in RESIDUAL_DTYPES:
            return self.overlay.to(origin.device)
        tuned = origin + self.values
        tuned[torch.searchsorted(self.indices, self.exact_indices)] = self.overlay
        return tuned

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
        """The residuals as an N-D `torch.sparse_coo_tensor`, coalesced, without the overlay.

        Raises:
            ParameterMismatchError: the dtype has no residuals.
        """
        if self.dtype not in RESIDUAL_DTYPES:
            raise ParameterMismatchError(f"a {self.dtype} parameter is stored by absolute value; it has no residual")
        where = torch.stack(torch.unravel_index(self.indices.long(), self.shape)) if self.shape else None
        if where is None:
            return torch.sparse_coo_tensor(torch.empty(0, self.nnz, dtype=torch.int64), self.values, self.shape)
        return torch.sparse_coo_tensor(where, self.values, self.shape, is_coalesced=True)

    def __eq__(self, other: object) -> bool:
        """Equal where every position, every bit of every value, shape, dtype and base agree."""
        if not isinstance(other, ParameterDelta):
            return NotImplemented
        return (
            (self.shape, self.dtype, self.base) == (other.shape, other.dtype, other.base)
            and torch.equal(self.indices, other.indices)
            and torch.equal(self.exact_indices, other.exact_indices)
            and bit_equal(self.values, other.values)
            and bit_equal(self.overlay, other.overlay)
        )

    __hash__ = None  # type: ignore[assignment]

    def __mul__(self, factor: float) -> "ParameterDelta":
        """Scale the residuals (task arithmetic): rounded, so without the overlay."""
        return self._approximate(self.indices, self.values * factor)

    def __add__(self, other: "ParameterDelta") -> "ParameterDelta":
        """Add the residuals of two changes of one parameter: rounded, so without the overlay."""
        if (self.shape, self.dtype) != (other.shape, other.dtype):
            raise ParameterMismatchError(f"cannot add {other.dtype} {other.shape} to {self.dtype} {self.shape}")
        indices, slot = torch.unique(torch.cat([self.indices, other.indices]), return_inverse=True)
        values = torch.zeros(indices.numel(), dtype=self.dtype, device=self.values.device)
        first = self.indices.numel()
        values[slot[:first]] = self.values
        values[slot[first:]] += other.values
        return self._approximate(indices, values)

    def _approximate(self, indices: Tensor, values: Tensor) -> "ParameterDelta":
        if self.dtype not in RESIDUAL_DTYPES:
            raise ParameterMismatchError(f"a {self.dtype} parameter is stored by absolute value: no arithmetic")
        changed = values != 0
        return ParameterDelta(indices[changed], values[changed], self.shape, self.dtype, exact_values=values[:0])


def index_dtype(numel: int) -> torch.dtype:
    """The dtype of positions in a tensor of `numel` elements."""
    return torch.int32 if numel < _INT32_LIMIT else torch.int64


def check_like(name: str, found: Tensor, wanted: Tensor) -> None:
    """Raise `ParameterMismatchError` unless shape and dtype agree."""
    if (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
        raise ParameterMismatchError(
            f"{name}: {found.dtype} {tuple(found.shape)} does not fit the base's {wanted.dtype} {tuple(wanted.shape)}"
        )


def check_comparable(name: str, base: Tensor, tuned: Tensor) -> None:
    """Raise `ParameterMismatchError` or `NonFiniteError` unless `tuned` can be a tuned version of `base`."""
    check_like(name, tuned, base)
    check_real(name, tuned)
    check_no_nan(name, tuned)


def check_real(name: str, tensor: Tensor) -> None:
    """Raise `ParameterMismatchError` for a complex tensor."""
    if tensor.is_complex():
        raise ParameterMismatchError(f"{name}: {tensor.dtype} is not supported; split it into real and imaginary parts")


def check_no_nan(name: str, tensor: Tensor) -> None:
    """Raise `NonFiniteError` if a float tensor has a NaN."""
    if not tensor.is_floating_point():
        return
    comparable = tensor.float() if tensor.element_size() == 1 else tensor
    nans = int(comparable.isnan().sum())
    if nans:
        raise NonFiniteError(f"{name}: {nans} of {tensor.numel()} weights are NaN")


def gather(flat: Tensor, positions: Tensor) -> Tensor:
    """Read a 1-D tensor of any dtype at `positions`, bit for bit."""
    return bits(flat).index_select(0, positions).view(flat.dtype)

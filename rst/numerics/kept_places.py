"""The positions where a parameter differs from its w0, and w0 there: enough to rebuild w0 from the weight."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rst.errors import ParameterMismatchError
from rst.numerics.places import write_at_


@dataclass(frozen=True)
class KeptPlaces:
    """The replacement for w0 of one parameter.

    Attributes:
        positions: sorted, flat and row-major, int32 (int64 where numel >= 2^31), shape (n,). Everywhere else the weight
            has the bits of w0.
        origin: w0 there, in the parameter's dtype, shape (n,).
    """

    positions: Tensor
    origin: Tensor

    @property
    def nbytes(self) -> int:
        """Return the bytes of both tensors."""
        return self.positions.nbytes + self.origin.nbytes

    def to(self, device: torch.device) -> "KeptPlaces":
        """Copy to a device."""
        return KeptPlaces(self.positions.to(device), self.origin.to(device))

    def check(self, name: str, weight: Tensor) -> None:
        """Raise `ParameterMismatchError` unless the positions fit `weight`, and the values have its dtype."""
        positions, origin = self.positions, self.origin
        check_positions(name, positions, weight.numel())
        if origin.shape != positions.shape or origin.dtype != weight.dtype:
            raise ParameterMismatchError(
                f"{origin.dtype} {tuple(origin.shape)} for {positions.numel()} positions in {weight.dtype}",
                parameter=name,
            )

    @torch.no_grad()
    def rebuild(self, weight: Tensor) -> Tensor:
        """Rebuild w0 from the current weight, with the same strides and device."""
        base = weight.detach().clone()
        write_at_(base, self.positions.to(base.device), self.origin.to(base.device))
        return base


def check_positions(name: str, positions: Tensor, numel: int) -> None:
    """Raise `ParameterMismatchError` unless these are sorted flat positions in a parameter of `numel` elements."""
    if positions.dtype not in (torch.int32, torch.int64) or positions.dim() != 1:
        raise ParameterMismatchError(
            f"positions are {positions.dtype} {tuple(positions.shape)}, not int32 or int64 (n,)", parameter=name
        )
    inside = not positions.numel() or (int(positions[0]) >= 0 and int(positions[-1]) < numel)
    if not inside or bool((positions.diff() <= 0).any()):
        raise ParameterMismatchError(
            f"{positions.numel()} positions are not sorted, unique and below {numel}", parameter=name
        )

"""A sparse matrix beside one quantised layer."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rst.delta.parameter_delta import ParameterDelta
from rst.errors import NonFiniteError, ParameterMismatchError, WrongBaseError
from rst.quantized.layers import QuantizedLinear
from rst.quantized.sparse_matrix import SparseMatrix


class SparseBeside:
    """Adds the product of a sparse matrix to a layer's output while it is on: `y = Q(x) + S x`.

    Attributes:
        target: the layer.
        positions: positions of S's elements in the float weight, flat, row-major and sorted, shape (n,).
        values: S there, shape (n,): residuals. A parameter if it is trained.
        dtype: dtype that the values are rounded to, so that a delta of this dtype has the same product.
    """

    def __init__(self, target: QuantizedLinear, positions: Tensor, values: Tensor, dtype: torch.dtype) -> None:
        """Prepare the product, which starts off."""
        self.target, self.positions, self.values, self.dtype = target, positions, values, dtype
        self._matrix: SparseMatrix | None = None
        self._handle: RemovableHandle | None = None

    @classmethod
    def of(cls, target: QuantizedLinear, change: ParameterDelta) -> "SparseBeside":
        """Create it from a delta's change of the layer's weight.

        Raises:
            ParameterMismatchError: the change has another shape, or its values are not residuals.
            NonFiniteError: a residual is infinite or NaN.
        """
        if change.shape != target.shape:
            raise ParameterMismatchError(
                f"the delta is for {change.shape}, the quantised layer has {target.shape}", parameter=target.name
            )
        if change.op != "add":
            raise ParameterMismatchError(
                f'stored with op "{change.op}", and a layer quantised by {target.scheme} has no w0 to tell residuals '
                'from it; rst.convert(delta, op="add", base=...) with the float base does',
                parameter=target.name,
            )
        if bad := int((~change.values.isfinite()).sum()):
            raise NonFiniteError(f"{bad} of {change.nnz} residuals are not finite", parameter=target.name)
        return cls(target, change.indices, change.values, change.dtype)

    @property
    def is_on(self) -> bool:
        """Whether the product is added to the layer's output."""
        return self._handle is not None

    @property
    def nbytes(self) -> int:
        """Return the bytes of positions and values."""
        return self.positions.nbytes + self.values.nbytes

    def check_alone(self) -> None:
        """Raise `WrongBaseError` if another matrix is already beside the layer."""
        hooks = self.target.layer._forward_hooks.values()
        if any(isinstance(hook, SparseBeside) and hook is not self for hook in hooks):
            raise WrongBaseError("another delta is on beside this quantised layer", parameter=self.target.name)

    def turn(self, on: bool) -> None:
        """Switch the product on or off."""
        if on and self._handle is None:
            self._handle = self.target.layer.register_forward_hook(self, with_kwargs=True)
        if not on and self._handle is not None:
            self._handle.remove()
            self._handle = None

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> Tensor:
        """Add the product, as the layer's forward hook."""
        inputs: Tensor = next(iter((*args, *kwargs.values())))
        return output + self.product(inputs.reshape(-1, inputs.shape[-1])).to(output.dtype).view_as(output)

    def product(self, inputs: Tensor) -> Tensor:
        """Return `S x` of inputs (n, in), shape (n, out), in float32, or float64 for values of that dtype."""
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        values = self.values.to(self.dtype).to(inputs.device, wide)  # rounded as the delta's are
        return self._on(inputs.device).product(inputs, values)

    def _on(self, device: torch.device) -> SparseMatrix:
        if self._matrix is None or self._matrix.order.device != device:
            self._matrix = SparseMatrix.at(self.positions.to(device), self.target.shape)
        return self._matrix

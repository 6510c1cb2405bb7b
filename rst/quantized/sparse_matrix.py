"""The product of a sparse matrix with trainable elements; the backward pass stores only the inputs."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rst.numerics.bags import Bags
from rst.training.support_linear import Pattern, make_first_csr_quietly, pattern_of, sampled_gradient


@dataclass(frozen=True)
class SparseMatrix:
    """The positions of a matrix' elements (outputs, inputs), in the orders that its products need.

    Attributes:
        shape: outputs and inputs.
        by_output: for `S x`.
        by_input: for `S.T y`.
        order: order of the elements in `by_input`.
        pattern: for the gradient of the elements.
    """

    shape: tuple[int, int]
    by_output: Bags
    by_input: Bags
    order: Tensor
    pattern: Pattern

    @classmethod
    def at(cls, positions: Tensor, shape: tuple[int, int]) -> "SparseMatrix":
        """Create it from sorted flat positions, shape (n,)."""
        make_first_csr_quietly()
        positions, nothing = positions.long(), torch.empty(0, device=positions.device)
        rows, columns = positions // shape[1], positions % shape[1]
        by_column, order = columns.sort(stable=True)
        return cls(
            shape,
            Bags.of(rows, columns, nothing),
            Bags.of(by_column, rows[order], nothing),
            order,
            pattern_of(positions, *shape),
        )

    def product(self, inputs: Tensor, values: Tensor) -> Tensor:
        """Return `S x` of inputs (n, in), differentiable in inputs and values, shape (n, out), in the values' dtype."""
        found: Tensor = _Product.apply(inputs, values, self)
        return found


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, values: Tensor, matrix: SparseMatrix) -> Tensor:
        ctx.save_for_backward(inputs, values)
        ctx.matrix = matrix
        return _sums(replace(matrix.by_output, weights=values), inputs, matrix.shape[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (inputs, values), matrix = ctx.saved_tensors, ctx.matrix
        of_inputs = of_values = None
        if ctx.needs_input_grad[0]:
            bags = replace(matrix.by_input, weights=values[matrix.order])
            of_inputs = _sums(bags, gradient, matrix.shape[1]).to(inputs.dtype)
        if ctx.needs_input_grad[1]:
            crow, columns = matrix.pattern
            of_values = sampled_gradient(gradient, inputs, crow, columns, values.dtype)
        return of_inputs, of_values, None


def _sums(bags: Bags, inputs: Tensor, width: int) -> Tensor:
    found = torch.zeros(len(inputs), width, dtype=bags.weights.dtype, device=inputs.device)
    return found.index_add_(1, bags.outputs, bags.sums(inputs).t())

"""A sparse matrix with its entries grouped by output, and its product with dense inputs."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Bags:
    """The entries of a sparse matrix, grouped by output: `output[k] = sum(weights * input[sources])` over bag k.

    Attributes:
        outputs: the outputs that have entries, shape (k,), int64.
        starts: index of the first entry of each output, shape (k,), int64.
        sources: the input of each entry, shape (nnz,), int64.
        weights: shape (nnz,).
    """

    outputs: Tensor
    starts: Tensor
    sources: Tensor
    weights: Tensor

    @classmethod
    def of(cls, outputs: Tensor, sources: Tensor, weights: Tensor) -> "Bags":
        """Group entries that are sorted by output."""
        distinct, counts = torch.unique_consecutive(outputs, return_counts=True)
        return cls(distinct, counts.cumsum(0) - counts, sources, weights)

    def sums(self, inputs: Tensor) -> Tensor:
        """Return each bag's sum for each of `inputs` (n, in), shape (k, n). Differentiable in inputs and weights."""
        columns = inputs.to(self.weights.dtype).t().contiguous()
        return functional.embedding_bag(self.sources, columns, self.starts, mode="sum", per_sample_weights=self.weights)

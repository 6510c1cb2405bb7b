"""A view in log-probabilities: `softmax(x).log()` is -inf where a view is certain."""

import torch
from torch import Tensor


def log_view(logits: Tensor) -> Tensor:
    """Log-probabilities (B, C) of logits (B, C), in float32 or better, under autocast too."""
    return torch.log_softmax(logits, dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))

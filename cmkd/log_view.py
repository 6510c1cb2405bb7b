"""Log-probabilities of a view: `softmax(x).log()` would be -inf where the view is certain."""

import torch
from torch import Tensor


def log_view(logits: Tensor) -> Tensor:
    """Return log-probabilities (B, C) of logits (B, C), in float32 or better, also under autocast."""
    return torch.log_softmax(logits, dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))

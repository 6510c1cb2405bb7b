"""RAFT's loss: the L1 error of every refinement, with larger weights for later ones."""

from collections.abc import Sequence

from torch import Tensor

LARGEST_FLOW = 400.0
"""Pixels that move further are left out, as in RAFT."""


def sequence_loss(predictions: Sequence[Tensor], flow: Tensor, valid: Tensor, *, gamma: float) -> Tensor:
    """Sum of `gamma^(n - 1 - i) * |prediction_i - flow|_1` over n refinements (Teed and Deng 2020, Eq. 7).

    Args:
        predictions: n tensors (B, 2, H, W), in pixels, first refinement first.
        flow: ground truth (B, 2, H, W), anything where it is not valid.
        valid: bool (B, H, W).
        gamma: weight of a refinement relative to the next one's.

    Returns:
        A scalar: the mean over all pixels and both components, those without ground truth counted as 0 (as in RAFT).

    Raises:
        ValueError: shapes that do not fit.
    """
    if flow.shape != predictions[-1].shape or valid.shape != (flow.shape[0], *flow.shape[2:]):
        shapes = f"prediction {tuple(predictions[-1].shape)}, flow {tuple(flow.shape)}, valid {tuple(valid.shape)}"
        raise ValueError(f"want (B, 2, H, W) twice and (B, H, W), got {shapes}")
    counted = (valid & (flow.norm(dim=1) < LARGEST_FLOW))[:, None]
    loss = flow.new_zeros(())
    for i, prediction in enumerate(predictions):
        # where, not a product: 0 * inf would be NaN
        error = (prediction - flow).abs().where(counted, 0.0).mean()
        loss = loss + gamma ** (len(predictions) - 1 - i) * error
    return loss

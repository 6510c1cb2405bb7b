"""Predictions on whole frames, and their scores."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.optical_flow.augmentation import to_input
from examples.optical_flow.flow_metrics import FlowMeter, FlowScores
from examples.optical_flow.kitti import FlowPair, KittiPairs, split
from examples.optical_flow.settings import Settings

SHOWN = 3
"""Pairs that get pictures."""


@torch.no_grad()
def predict(network: nn.Module, pair: FlowPair, *, updates: int) -> Tensor:
    """Flow (2, H, W) in pixels, on the CPU, of one pair of any size.

    RAFT wants multiples of 8: rows are added below and columns on both sides, copies of the edge, and cut off again.

    Args:
        network: RAFT in eval mode.
        pair: images as read.
        updates: refinements; the last is returned.
    """
    device = next(network.parameters()).device
    height, width = pair.first.shape[1:]
    rows, columns = -height % 8, -width % 8
    edges = columns // 2, columns - columns // 2, 0, rows
    first, second = (F.pad(to_input(image.to(device))[None], edges, mode="replicate") for image in pair[:2])
    flow = network(first, second, num_flow_updates=updates)[-1][0]
    return flow[:, :height, edges[0] : edges[0] + width].cpu()


def evaluate(network: nn.Module, pairs: KittiPairs, positions: Sequence[int], *, updates: int) -> FlowScores:
    """Scores over the pairs at these positions; leaves the network in eval mode."""
    network.eval()
    meter = FlowMeter()
    for position in positions:
        pair = pairs[position]
        meter.add(predict(network, pair, updates=updates), pair.flow, pair.valid)
    return meter.scores()


def shown_pairs(pairs: KittiPairs, settings: Settings) -> dict[int, FlowPair]:
    """The measured pairs that get pictures, evenly spaced, by position."""
    _, measured = split(len(pairs), settings.pairs)
    return {position: pairs[position] for position in measured[:: -(-len(measured) // SHOWN)]}


def predict_all(network: nn.Module, pairs: Mapping[int, FlowPair], *, updates: int) -> dict[int, Tensor]:
    """What `predict` gives for each."""
    return {position: predict(network, pair, updates=updates) for position, pair in pairs.items()}


def digest(flows: Iterable[Tensor]) -> str:
    """SHA-256 of flows in order: equal if and only if every bit is."""
    found = hashlib.sha256()
    for flow in flows:
        found.update(flow.contiguous().numpy().tobytes())
    return found.hexdigest()

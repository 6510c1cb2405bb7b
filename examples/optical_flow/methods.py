"""The rows of Table X: what each method trains, and what a task must store for it.

"fine_tuning" trains everything. "linear_probe" trains what MMFlow calls the decoder: the update block (motion encoder,
GRU, flow head) and the mask predictor; its 3.1210 M are the table's. "bitfit" trains the biases. "lora" adds rank-1
factors to every convolution of both encoders and the decoder. "rst" trains everything and keeps the r % that changed
most. "rst_bias" is BitFit with the gradients of all weights included in the norm for clipping.
"""

from collections.abc import Callable

from torch import nn

from examples.optical_flow.kept_share import kept_share
from examples.optical_flow.networks import DECODER
from examples.optical_flow.settings import Settings
from rst import ResidualSparseTrainer, RSTConfig


def prepare(network: nn.Module, settings: Settings) -> ResidualSparseTrainer | None:
    """Freeze what the method does not train, or put LoRA in, or make RST's trainer (not attached yet).

    Args:
        network: RAFT with its starting weights; changed in place.
        settings: the method and what belongs to it.
    """
    if settings.method == "linear_probe":
        _train_only(network, lambda name: name.startswith(DECODER))
    elif settings.method == "bitfit":
        _train_only(network, lambda name: name.endswith("bias"))
    elif settings.method == "lora":
        _add_lora(network, settings.lora_rank)
    elif settings.method == "rst":
        return ResidualSparseTrainer(
            network, RSTConfig(select="top", ratio=kept_share(settings), total_steps=settings.steps)
        )
    elif settings.method == "rst_bias":
        return ResidualSparseTrainer(network, RSTConfig(select="bias"))
    return None


def _train_only(network: nn.Module, wanted: Callable[[str], bool]) -> None:
    for name, weight in network.named_parameters():
        weight.requires_grad_(wanted(name))


def _add_lora(network: nn.Module, rank: int) -> None:
    """Put peft's LoRA on every convolution, with alpha = rank, as the paper gives none."""
    from peft import LoraConfig, inject_adapter_in_model

    convolutions = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=convolutions), network)

"""What a task must store: counted from the architecture before training, and from the saved file after it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from examples.optical_flow.methods import prepare
from examples.optical_flow.networks import CONTEXT_ENCODER, load_network
from examples.optical_flow.settings import Settings
from rst import ResidualSparseTrainer


@dataclass(frozen=True)
class Storage:
    """Downstream parameters of one task (DSP, Sec. IV-A).

    Attributes:
        dsp: all that must be stored.
        dsp_like_paper: without the context encoder, which Table X leaves out; None where training decides it.
    """

    dsp: int
    dsp_like_paper: int | None


def count_from_architecture(settings: Settings) -> Storage:
    """Storage of a method by the network's shapes alone; no weights are loaded."""
    with torch.device("meta"):
        network = load_network(settings.architecture, None)
    if settings.method == "rst":
        total = sum(weight.numel() for weight in network.parameters())
        return Storage(round(settings.final_share * total), None)
    if settings.method == "rst_bias":
        return _count({name: w.numel() for name, w in network.named_parameters() if name.endswith("bias")}.items())
    with torch.device("meta"):
        prepare(network, settings)
    return _count((name, weight.numel()) for name, weight in trained(network).items())


def store(network: nn.Module, trainer: ResidualSparseTrainer | None, path: Path) -> Storage:
    """Save what turns the starting weights into this network: RST's delta, or everything that was trained.

    BatchNorm's statistics are frozen, so they need no storing.
    """
    if trainer is not None:
        delta = trainer.export()
        delta.save(path)
        return _count((name, change.nnz) for name, change in delta.items())
    save_file({name: weight.detach().cpu().contiguous() for name, weight in trained(network).items()}, path)
    return _count((name, weight.numel()) for name, weight in trained(network).items())


def trained(network: nn.Module) -> Mapping[str, Tensor]:
    """Parameters that a gradient reaches, by name."""
    return {name: weight for name, weight in network.named_parameters() if weight.requires_grad}


def _count(numbers: Iterable[tuple[str, int]]) -> Storage:
    found = dict(numbers)
    return Storage(
        sum(found.values()), sum(number for name, number in found.items() if not name.startswith(CONTEXT_ENCODER))
    )

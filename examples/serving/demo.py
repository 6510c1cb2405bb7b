"""A demo model to serve: a ResNet-18 with fixed random weights, and a folder with any number of deltas of it.

python -m examples.serving.demo outputs/serving/adapters --count 1000
"""

import copy
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import track
from torch import nn

from rst import RSTModel, SparseDelta, export


def base_model() -> nn.Module:
    """Return the same ResNet-18 every time; 11.7 million weights, inputs of (N, 3, H, W) float32."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    model: nn.Module = resnet18(weights=None)
    return model.eval()


def random_delta(base: nn.Module, seed: int, density: float = 0.001) -> SparseDelta:
    """Change a random share of the base's weights by a hundredth of a standard normal."""
    generator = torch.Generator().manual_seed(seed)
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in tuned.parameters():
            flat = parameter.view(-1)
            positions = torch.randint(flat.numel(), (round(density * flat.numel()),), generator=generator)
            flat[positions] += 0.01 * torch.randn(len(positions), generator=generator)
    return export(base, tuned)


def write_adapters(base: nn.Module, folder: Path, names: list[str], density: float = 0.001) -> None:
    """Write one adapter folder a name, as `RSTModel.save_pretrained` does."""
    model = RSTModel(base)
    for seed, name in enumerate(track(names, "writing", disable=len(names) < 100)):
        model.add_adapter(name, random_delta(base, seed, density))
        model.save_pretrained(folder, [name])
        model.delete_adapter(name)


def main(
    folder: Annotated[Path, typer.Argument(help="Where the adapters go.")],
    count: Annotated[int, typer.Option(help="How many.")] = 1000,
    density: Annotated[float, typer.Option(help="Share of the weights that each changes.")] = 0.001,
) -> None:
    """Write adapters for the demonstration's base model."""
    write_adapters(base_model(), folder, [f"domain-{index:04}" for index in range(count)], density)


if __name__ == "__main__":
    typer.run(main)

"""The ways to tune: all weights, LoRA, and RST on a support. Each writes what a user would ship into a folder."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from examples.real_language.task import Batch, Task
from rst import ResidualSparseTrainer, RSTConfig, Support

METHODS = {"full": "full fine-tuning", "lora": "LoRA, r=4", "rst": "RST, a support of 1 %"}
SUPPORT_RATIO = 0.01
DELTA = "delta.safetensors"


@dataclass(frozen=True)
class Tuning:
    """A model that is being tuned.

    Attributes:
        model: to call in training.
        optimizer: steps what is trained.
        save: writes what one would ship into a folder, which exists.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    save: Callable[[Path], object]


def start(method: str, rate: float, task: Task, model: nn.Module, batches: list[Batch]) -> Tuning:
    """Prepare a pretrained model. Each method has AdamW without decay, and one learning rate for all it trains."""

    def adamw(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)

    if method == "full":
        return Tuning(model, adamw(model.parameters()), model.save_pretrained)
    if method == "lora":
        from peft import LoraConfig, get_peft_model

        adapted = get_peft_model(model, LoraConfig(r=4, target_modules=linear_layers(model)))
        trained = [weight for weight in adapted.parameters() if weight.requires_grad]
        return Tuning(adapted, adamw(trained), adapted.save_pretrained)
    weights = [f"{name}.weight" for name in linear_layers(model)]
    support = Support.from_gradients(
        model,
        batches[:4],
        SUPPORT_RATIO,
        loss=lambda batch: task.loss(model, batch),
        config=RSTConfig(target_modules=weights),
    )
    trainer = ResidualSparseTrainer(model, RSTConfig(select="support", target_modules=weights), support=support)
    optimizer = adamw(trainer.parameters())
    trainer.attach(optimizer)
    return Tuning(model, optimizer, lambda folder: trainer.export().save(folder / DELTA, encoding="packed"))


def linear_layers(model: nn.Module) -> list[str]:
    """Names of the linear layers inside the blocks."""
    return [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and "layer" in name]

"""Ways to train a hundredth of the encoder in little memory, each for `STEPS` steps of AdamW, the head included."""

from collections.abc import Callable

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from examples.real_vision.compare_rules import STEPS, draw, fit, loss_of, make_optimizer
from examples.real_vision.few_shot import Labelled
from examples.real_vision.network import HEAD
from rst import Geometric, ResidualSparseTrainer, RSTConfig, Support

SHARE = 0.01
WARM_UP, WARM_RATE = 10, 1e-4
"""Steps of the warm-up, and their rate: the one that the share itself is best with."""
GRADIENT_BATCHES = 4
MOVES, MOVED, MOVE_BATCHES = 4, 0.2, 2
"""How often a support moves, the share of it that does, and the batches whose gradients decide."""
RANK = 1
"""LoRA's, of the 1x1 convolutions: about as many weights as `SHARE`."""

Method = Callable[[nn.Module, float, Labelled], int]
"""Trains a model at a rate on images; returns how many weights of the encoder it trained, or changed."""

_ENCODER = RSTConfig(modules_to_save=[HEAD])
_SUPPORT = RSTConfig(select="support", modules_to_save=[HEAD])


def warm_up(model: nn.Module, rate: float, data: Labelled) -> int:
    """The share for some steps, then what it has kept by then."""
    return _train_support(model, _warm_up(model, data), rate, data, [STEPS - WARM_UP])


def gradients(model: nn.Module, rate: float, data: Labelled) -> int:
    """The weights with the largest gradients before training."""
    batches = [draw(data) for _ in range(GRADIENT_BATCHES)]
    model.train()
    found = Support.from_gradients(model, batches, SHARE, loss=lambda batch: loss_of(model, batch), config=_ENCODER)
    return _train_support(model, found, rate, data, [STEPS])


def moving(model: nn.Module, rate: float, data: Labelled) -> int:
    """A random share that moves to where the gradients are, as SpIEL's."""
    support = Support.random(model, SHARE, seed=torch.initial_seed() % 2**31, config=_ENCODER)
    return _train_support(model, support, rate, data, [STEPS // (MOVES + 1)] * (MOVES + 1))


def lora(model: nn.Module, rate: float, data: Labelled) -> int:
    """LoRA on the 1x1 convolutions."""
    layers = [name for name, module in model.named_modules() if _is_pointwise(module)]
    adapted = get_peft_model(model, LoraConfig(r=RANK, target_modules=layers, modules_to_save=[HEAD]))
    trained = [(name, weight) for name, weight in adapted.named_parameters() if weight.requires_grad]
    fit(adapted, make_optimizer(trained, "adamw", rate), data)
    return sum(weight.numel() for name, weight in trained if HEAD not in name.split("."))


METHODS: dict[str, Method] = {
    "support of a warm-up": warm_up,
    "support of gradients": gradients,
    "random support that moves": moving,
    "LoRA": lora,
}
"""Beside these the comparison of rules has all weights, the share, and a random support that stays."""


def _warm_up(model: nn.Module, data: Labelled) -> Support:
    config = RSTConfig(ratio=Geometric(1.0, SHARE, by=0.5), total_steps=WARM_UP, modules_to_save=[HEAD])
    trainer = ResidualSparseTrainer(model, config)
    optimizer = make_optimizer(model.named_parameters(), "adamw", WARM_RATE)
    trainer.attach(optimizer)
    fit(model, optimizer, data, WARM_UP)
    trainer.detach()
    return trainer.to_support()


def _train_support(model: nn.Module, support: Support, rate: float, data: Labelled, phases: list[int]) -> int:
    """Train a support for phases of so many steps, between which it moves."""
    trainer = ResidualSparseTrainer(model, _SUPPORT, support=support)
    optimizer = make_optimizer(trainer.named_parameters(), "adamw", rate)
    trainer.attach(optimizer)
    for number, steps in enumerate(phases):
        if number:
            optimizer.zero_grad()
            batches = [draw(data) for _ in range(MOVE_BATCHES)]
            trainer.move_support(batches, MOVED, loss=lambda batch: loss_of(model, batch))
        fit(model, optimizer, data, steps)
    return support.nnz


def _is_pointwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)

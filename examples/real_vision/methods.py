"""Ways to adapt the encoder, each for `STEPS` steps of AdamW with the head beside it, and what each would ship."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
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
DELTA = "delta.safetensors"

_ENCODER = RSTConfig(modules_to_save=[HEAD])
_SUPPORT = RSTConfig(select="support", modules_to_save=[HEAD])


@dataclass(frozen=True)
class Tuned:
    """What a training left.

    Attributes:
        trained: how many weights of the encoder were trained; of a share, how many differ from the base.
        save: writes what one would ship into a folder, which exists.
    """

    trained: int
    save: Callable[[Path], object]


@dataclass(frozen=True)
class Method:
    """A way to adapt, and the learning rates of the encoder that validation chooses from."""

    train: Callable[[nn.Module, float, Labelled], Tuned]
    rates: tuple[float, ...]


def some_weights(model: nn.Module, rate: float, data: Labelled, *, wanted: Callable[[str], bool]) -> Tuned:
    """The weights whose names are wanted, and the head."""
    trained = {name: weight for name, weight in model.named_parameters() if _is_head(name) or wanted(name)}
    for name, weight in model.named_parameters():
        weight.requires_grad_(name in trained)
    fit(model, make_optimizer(trained.items(), "adamw", rate), data)
    count = sum(weight.numel() for name, weight in trained.items() if not _is_head(name))
    return Tuned(count, lambda folder: _save(trained.items(), folder))


def lora(model: nn.Module, rate: float, data: Labelled) -> Tuned:
    """LoRA on the 1x1 convolutions."""
    layers = [name for name, module in model.named_modules() if _is_pointwise(module)]
    adapted = get_peft_model(model, LoraConfig(r=RANK, target_modules=layers, modules_to_save=[HEAD]))
    trained = [(name, weight) for name, weight in adapted.named_parameters() if weight.requires_grad]
    fit(adapted, make_optimizer(trained, "adamw", rate), data)
    count = sum(weight.numel() for name, weight in trained if not _is_head(name))
    return Tuned(count, lambda folder: _save(trained, folder))


def share(model: nn.Module, rate: float, data: Labelled) -> Tuned:
    """RST with its default rule: the largest changes are kept, a share that falls geometrically."""
    config = RSTConfig(ratio=SHARE, total_steps=STEPS, modules_to_save=[HEAD])
    trainer = ResidualSparseTrainer(model, config)
    optimizer = make_optimizer(model.named_parameters(), "adamw", rate)
    trainer.attach(optimizer)
    fit(model, optimizer, data)
    trainer.select()
    count = trainer.count_changed()
    return Tuned(count, partial(_export, trainer))


def warm_up(model: nn.Module, rate: float, data: Labelled) -> Tuned:
    """The share for some steps, then what it has kept by then."""
    return _train_support(model, _warm_up(model, data), rate, data, [STEPS - WARM_UP])


def gradients(model: nn.Module, rate: float, data: Labelled) -> Tuned:
    """The weights with the largest gradients before training."""
    batches = [draw(data) for _ in range(GRADIENT_BATCHES)]
    model.train()
    found = Support.from_gradients(model, batches, SHARE, loss=lambda batch: loss_of(model, batch), config=_ENCODER)
    return _train_support(model, found, rate, data, [STEPS])


def random(model: nn.Module, rate: float, data: Labelled) -> Tuned:
    """A random share, as SHiRA's random mask."""
    return _train_support(model, _random(model), rate, data, [STEPS])


def moving(model: nn.Module, rate: float, data: Labelled) -> Tuned:
    """A random share that moves to where the gradients are, as SpIEL's."""
    return _train_support(model, _random(model), rate, data, [STEPS // (MOVES + 1)] * (MOVES + 1))


_OF_MANY, _OF_FEW, _OF_FEWEST = (1e-4, 3e-4, 1e-3), (3e-4, 1e-3, 3e-3), (1e-3, 3e-3, 1e-2)

METHODS: dict[str, Method] = {
    "all weights": Method(partial(some_weights, wanted=lambda name: True), _OF_MANY),
    "head alone": Method(partial(some_weights, wanted=lambda name: False), (0.0,)),
    "BitFit": Method(partial(some_weights, wanted=lambda name: name.endswith(".bias")), _OF_FEWEST),
    "LoRA": Method(lora, _OF_FEW),
    "share": Method(share, _OF_MANY),
    "support of a warm-up": Method(warm_up, _OF_FEW),
    "support of gradients": Method(gradients, _OF_FEW),
    "random support": Method(random, _OF_FEWEST),
    "random support that moves": Method(moving, _OF_FEW),
}


def _warm_up(model: nn.Module, data: Labelled) -> Support:
    config = RSTConfig(ratio=Geometric(1.0, SHARE, by=0.5), total_steps=WARM_UP, modules_to_save=[HEAD])
    trainer = ResidualSparseTrainer(model, config)
    optimizer = make_optimizer(model.named_parameters(), "adamw", WARM_RATE)
    trainer.attach(optimizer)
    fit(model, optimizer, data, WARM_UP)
    trainer.detach()
    return trainer.to_support()


def _random(model: nn.Module) -> Support:
    return Support.random(model, SHARE, seed=torch.initial_seed() % 2**31, config=_ENCODER)


def _train_support(model: nn.Module, support: Support, rate: float, data: Labelled, phases: list[int]) -> Tuned:
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
    return Tuned(support.nnz, partial(_export, trainer))


def _export(trainer: ResidualSparseTrainer, folder: Path) -> None:
    trainer.export().save(folder / DELTA, encoding="packed")


def _save(weights: Iterable[tuple[str, nn.Parameter]], folder: Path) -> None:
    save_file({name: weight.detach().contiguous() for name, weight in weights}, folder / "weights.safetensors")


def _is_head(name: str) -> bool:
    return HEAD in name.split(".")


def _is_pointwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)

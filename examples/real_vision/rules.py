"""The compared selection rules, each defined by what it does after an optimiser step and at the end.

All of them train every weight of the encoder with ordinary steps; they differ in when and how they reset weights.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from examples.real_vision.network import HEAD
from rst import Constant, Geometric, ResidualSparseTrainer, RSTConfig


@dataclass(frozen=True)
class Rule:
    """A row of the comparison.

    Attributes:
        name: in tables.
        share: of the encoder's weights that may differ from the base at the end; None where a threshold decides.
        threshold: tau, where that decides.
    """

    name: str
    share: float | None = None
    threshold: float | None = None

    @property
    def label(self) -> str:
        """The name with its number."""
        return f"{self.name} {self.share:.2%}" if self.share is not None else f"{self.name} {self.threshold:g}"


RULES = ("once", "constant", "geometric", "every", "random")
"""Those that are given a share; "threshold" is given a tau."""


def follow(rule: Rule, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int) -> Callable[[], int]:
    """Apply a rule from now on; what is returned is to be called at the end and counts the changed weights."""
    if rule.name == "random":
        return _follow_random(rule, model, optimizer, seed)
    trainer = ResidualSparseTrainer(model, config(rule, steps))
    trainer.attach(optimizer)

    def finish() -> int:
        trainer.select()
        return trainer.count_changed()

    return finish


def config(rule: Rule, steps: int) -> RSTConfig:
    """The settings of RST for a rule over a run of so many steps."""
    if rule.name == "threshold":
        assert rule.threshold is not None
        return RSTConfig(threshold=rule.threshold, modules_to_save=[HEAD])
    assert rule.share is not None
    return RSTConfig(
        ratio=Geometric(1.0, rule.share, by=0.5) if rule.name == "geometric" else Constant(rule.share),
        total_steps=steps,
        every={"once": 0, "every": 10}.get(rule.name, 1),
        modules_to_save=[HEAD],
    )


def _follow_random(rule: Rule, model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> Callable[[], int]:
    """SHiRA's: a random share of each tensor's weights may move, the others never do."""
    assert rule.share is not None
    generator = torch.Generator().manual_seed(seed)
    fixed: list[tuple[Tensor, Tensor, Tensor]] = []
    for name, weight in model.named_parameters():
        if not name.startswith(f"{HEAD}."):
            still = torch.rand(weight.shape, generator=generator) >= rule.share
            fixed.append((weight, still, weight.detach().clone()))

    def put_back(*_: object) -> None:
        with torch.no_grad():
            for weight, still, origin in fixed:
                torch.where(still, origin, weight, out=weight.data)

    optimizer.register_step_post_hook(put_back)
    return lambda: sum(int((~still).sum()) for _, still, _ in fixed)

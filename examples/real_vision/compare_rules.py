"""Accuracy against kept share for every rule."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from examples.real_vision.few_shot import FewShot, Labelled, few_shot
from examples.real_vision.network import HEAD, base_model, encoder_weights, logits
from examples.real_vision.resuming import Run, carry_out, read
from examples.real_vision.rules import RULES, Rule, follow

STEPS = 40
BATCH = 16
SEEDS = 3
DOMAINS = ("S", "A")
SHARES = (0.01, 0.001)
RATES = {"adamw": (1e-4, 3e-4, 1e-3, 3e-3), "sgd": (1e-4, 3e-4, 1e-3, 3e-3)}
HEAD_RATE = {"adamw": 1e-3, "sgd": 1e-3}
THRESHOLDS = {"adamw": (0.5, 2.0, 5.0), "sgd": (1e-3, 1e-2, 1e-1)}
"""Tau in learning rates: AdamW moves a weight by about one of them a step, SGD by much less."""
RATE_OF = {"threshold": "once", "every": "constant"}
"""Rules that take another's learning rate."""


@dataclass(frozen=True)
class RuleRun(Run):
    """One training run."""

    rule: Rule
    optimizer: str
    rate: float
    domain: str
    seed: int

    @property
    def key(self) -> str:
        """Its name among the results."""
        return f"{self.rule.label} {self.optimizer} {self.rate:g} {self.domain} {self.seed}"


def train(run: RuleRun, root: Path) -> dict[str, float | int]:
    """Fine-tune the base on a few images; returns the accuracies at the end and the count of changed weights."""
    torch.manual_seed(run.seed)
    data = few_shot(root, run.domain, run.seed)
    model = base_model(root)
    optimizer = make_optimizer(model.named_parameters(), run.optimizer, run.rate)
    finish = follow(run.rule, model, optimizer, STEPS, run.seed)
    fit(model, optimizer, data.train)
    changed = finish()
    return {**accuracies(model, data), "changed": changed, "share": changed / encoder_weights(model)}


def make_optimizer(parameters: Iterable[tuple[str, nn.Parameter]], name: str, rate: float) -> torch.optim.Optimizer:
    """SGD with momentum or AdamW of parameters by name, the head at a rate of its own."""
    head: list[nn.Parameter] = []
    encoder: list[nn.Parameter] = []
    for key, weight in parameters:
        (head if HEAD in key.split(".") else encoder).append(weight)
    groups = [{"params": encoder, "lr": rate}, {"params": head, "lr": HEAD_RATE[name]}]
    return torch.optim.AdamW(groups) if name == "adamw" else torch.optim.SGD(groups, lr=rate, momentum=0.9)


def fit(model: nn.Module, optimizer: torch.optim.Optimizer, data: Labelled, steps: int = STEPS) -> None:
    """Train for some batches."""
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model, draw(data)).backward()
        optimizer.step()


def draw(data: Labelled) -> Labelled:
    """A batch, each image drawn at random and mirrored at random."""
    images, labels = data
    chosen = torch.randint(len(labels), (BATCH,))
    batch = torch.where(torch.rand(BATCH, 1, 1, 1) < 0.5, images[chosen], images[chosen].flip(-1))
    return batch.contiguous(memory_format=torch.channels_last), labels[chosen]


def loss_of(model: nn.Module, batch: Labelled) -> Tensor:
    """Cross entropy, shape ()."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def accuracies(model: nn.Module, data: FewShot) -> dict[str, float]:
    """Shares of the validation and test images that are classified correctly, and the loss on the former."""
    (images, labels), (test, wanted) = data.validation, data.test
    said = logits(model, images)
    return {
        "validation": float((said.argmax(1) == labels).float().mean()),
        "validation_loss": float(nn.functional.cross_entropy(said, labels)),
        "test": float((logits(model, test).argmax(1) == wanted).float().mean()),
    }


def compare(root: Path, results: Path) -> None:
    """Run what is not done yet: first the choice of each rule's rate, then all seeds and domains."""
    carry_out(runs(results), partial(train, root=root), results)


def runs(results: Path) -> Iterator[RuleRun]:
    """Every run in order. The rates that seed 0 on the first domain is best with are those of all others."""
    for optimizer, rates in RATES.items():
        for rule in searched():
            for rate in rates:
                yield RuleRun(rule, optimizer, rate, DOMAINS[0], 0)
    for share in SHARES:
        for seed in range(SEEDS):
            for domain in DOMAINS:
                for optimizer in RATES:
                    done = read(results)
                    for rule in rules(share, optimizer, done):
                        yield RuleRun(rule, optimizer, chosen_rate(rule, optimizer, done), domain, seed)


def searched() -> list[Rule]:
    """The rules whose rate is searched, each at the larger share."""
    return [Rule(name, SHARES[0]) for name in RULES if name not in RATE_OF]


def rules(share: float, optimizer: str, done: dict[str, dict[str, float]]) -> list[Rule]:
    """All rows: every rule at this share, a dense run, and thresholds in units of the dense run's rate."""
    dense = chosen_rate(Rule("once", 1.0), optimizer, done)
    thresholds = [Rule("threshold", threshold=factor * dense) for factor in THRESHOLDS[optimizer]]
    return [*(Rule(name, share) for name in RULES), Rule("once", 1.0), *thresholds]


def chosen_rate(rule: Rule, optimizer: str, done: Mapping[str, Mapping[str, Any]]) -> float:
    """The rate of lowest validation loss in the search."""
    key = Rule(RATE_OF.get(rule.name, rule.name), SHARES[0])
    return min(
        RATES[optimizer], key=lambda rate: done[RuleRun(key, optimizer, rate, DOMAINS[0], 0).key]["validation_loss"]
    )

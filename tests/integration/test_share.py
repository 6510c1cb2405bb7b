"""Who asks for a share of the weights gets it, whatever the architecture, the optimiser and its learning rate."""

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn

from rst import ResidualSparseTrainer, RSTConfig
from tests.integration.lion import Lion

transformers = pytest.importorskip("transformers")

Optimizers = Callable[[Iterable[Tensor]], torch.optim.Optimizer]
TINY = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
STEPS = 25
SLOW = pytest.mark.slow


def bert() -> tuple[nn.Module, dict[str, Tensor]]:
    config = transformers.BertConfig(vocab_size=300, **TINY)
    inputs = torch.randint(300, (4, 8))
    return transformers.BertForSequenceClassification(config), {
        "input_ids": inputs,
        "labels": torch.tensor([0, 1, 0, 1]),
    }


def vit() -> tuple[nn.Module, dict[str, Tensor]]:
    config = transformers.ViTConfig(image_size=16, patch_size=8, **TINY)
    images = torch.randn(4, 3, 16, 16)
    return transformers.ViTForImageClassification(config), {
        "pixel_values": images,
        "labels": torch.tensor([0, 1, 0, 1]),
    }


def gpt2() -> tuple[nn.Module, dict[str, Tensor]]:
    config = transformers.GPT2Config(vocab_size=300, n_embd=48, n_layer=2, n_head=2, n_positions=16)
    inputs = torch.randint(300, (4, 8))
    return transformers.GPT2LMHeadModel(config), {"input_ids": inputs, "labels": inputs}


OPTIMIZERS: dict[str, Optimizers] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9),
    "adamw 1e-5": lambda parameters: torch.optim.AdamW(parameters, lr=1e-5),
    "adamw 1e-3": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
    "adafactor": lambda parameters: torch.optim.Adafactor(parameters, lr=1e-3),
    "lion": lambda parameters: Lion(parameters, lr=1e-4),
}


CONFIGS = {"default": RSTConfig(), "ratio": RSTConfig(ratio=0.001, total_steps=STEPS)}
FAST = {("default", "adamw 1e-5", bert), ("ratio", "adamw 1e-5", bert)}
MET = {  # every optimiser with every model, and either of them with both configurations
    ([*CONFIGS][(row + column) % 2], optimizer, make)
    for row, optimizer in enumerate(OPTIMIZERS)
    for column, make in enumerate((bert, vit, gpt2))
}


@pytest.mark.parametrize(
    ("config", "optimizer", "make"),
    [
        pytest.param(*case, id=f"{case[0]}-{case[1]}-{case[2].__name__}", marks=() if case in FAST else SLOW)
        for case in sorted(MET | FAST, key=lambda case: (case[2].__name__, *case[:2]))
    ],
)
def test_the_share_that_is_asked_for_is_kept(
    config: str, optimizer: str, make: Callable[[], tuple[nn.Module, dict[str, Tensor]]]
) -> None:
    torch.manual_seed(0)
    model, batch = make()
    trainer = ResidualSparseTrainer(model.train(), CONFIGS[config])
    stepping = OPTIMIZERS[optimizer](model.parameters())
    trainer.attach(stepping)
    for _ in range(STEPS):
        stepping.zero_grad()
        model(**batch).loss.backward()
        stepping.step()
    total = sum(weight.numel() for weight in trainer.tracked.sparse.values())
    share = CONFIGS[config].ratio_at(CONFIGS[config].progress(STEPS))
    assert trainer.count_changed() / total == pytest.approx(share, rel=0.1)
    assert trainer.export().nnz / total == pytest.approx(CONFIGS[config].exported_ratio(1.0), rel=0.1)

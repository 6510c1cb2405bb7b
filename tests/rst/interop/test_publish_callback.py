"""`PublishCallback` in a run of `transformers.Trainer`: a follower has the trained model's bits."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rst import ConfigError
from rst.numerics.exactness import bit_equal
from rst.sync import Follower, verify
from tests.refusal import refused

transformers = pytest.importorskip("transformers")

from rst.interop.publish_callback import PublishCallback  # noqa: E402

# torch's, about what accelerate asks the scheduler and transformers the loader on a machine without a GPU
pytestmark = [pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")]


def gpt2(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=32, n_positions=16)
    return transformers.GPT2LMHeadModel(config)


def samples() -> list[dict[str, Tensor]]:
    tokens = torch.randint(0, 32, (12, 8), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row} for row in tokens]


def arguments(folder: Path, **settings: Any) -> Any:
    return transformers.TrainingArguments(
        str(folder),
        per_device_train_batch_size=4,
        max_steps=5,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        learning_rate=1e-3,
        **settings,
    )


@pytest.mark.parametrize("every", [1, 2])
def test_a_follower_has_what_the_trainer_trained(tmp_path: Path, every: int) -> None:
    model, served = gpt2(), gpt2(seed=1).to(torch.bfloat16)
    callback = PublishCallback(tmp_path / "chain", every=every, dtype=torch.bfloat16, anchor_every=2)
    transformers.Trainer(model, arguments(tmp_path / "out"), train_dataset=samples(), callbacks=[callback]).train()
    assert verify(tmp_path / "chain").step == {1: 5, 2: 3}[every]  # the fifth step, which 2 does not divide, at the end
    Follower(served, tmp_path / "chain").update()
    trained = copy.deepcopy(model).to(torch.bfloat16).state_dict()
    assert all(bit_equal(served.state_dict()[name], weight) for name, weight in trained.items())
    assert callback.publisher is not None


def test_whoever_asks_is_told_of_each_step_when_it_can_be_had(tmp_path: Path) -> None:
    told, model, chain = [], gpt2(), tmp_path / "chain"
    callback = PublishCallback(chain, every=2, on_publish=lambda done: told.append((done.step, verify(chain).step)))
    transformers.Trainer(model, arguments(tmp_path / "out"), train_dataset=samples(), callbacks=[callback]).train()
    assert told == [(1, 1), (2, 2), (3, 3)]


def test_settings_that_mean_nothing() -> None:
    with refused(ConfigError, "every=0"):
        PublishCallback("chain", every=0)

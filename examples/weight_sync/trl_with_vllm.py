"""Reinforcement learning with TRL in this process and generation with vLLM in another, which gets each step over HTTP.

python -m examples.weight_sync.trl_with_vllm --steps 4

GRPO trains a tiny Llama in float32 to prefer some words; vLLM answers in bfloat16. The server starts from random
weights and must end with the answers, to the last digit of every log-probability, of a server that has loaded the
trained model. Needs `pip install "residual-sparse-training[vllm]" trl`; see docs/howto/trl-and-vllm.md.
"""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
import typer
from torch import nn

from examples.weight_sync.into_vllm import VOCABULARY, answer, bring, compare, save, serve, tokenizer
from examples.weight_sync.language_model import generated_model
from rst.interop.publish_callback import PublishCallback
from rst.interop.vllm_server import VLLMServer


def main(
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps, each of them published.")] = 4,
    lr: Annotated[float, typer.Option(help="AdamW's learning rate.")] = 1e-5,
) -> None:
    """Train, publish and update the server at each step; then compare with a server of the trained model."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = generated_model(vocabulary=VOCABULARY).float()
        save(model, folder / "start")
        with serve(folder / "start", "--load-format", "dummy") as url:
            update = partial(bring, VLLMServer(url, folder / "chain"))
            train(model, folder, steps, lr, PublishCallback(folder / "chain", dtype=torch.bfloat16, on_publish=update))
            followed = answer(url)
        save(model.to(torch.bfloat16), folder / "trained")
        with serve(folder / "trained") as url:
            compare(followed, answer(url))


def train(model: nn.Module, folder: Path, steps: int, lr: float, publish: PublishCallback) -> None:
    """GRPO with one prompt and a simple reward: what is shown is where the weights go."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    arguments = GRPOConfig(
        str(folder / "trainer"),
        max_steps=steps,
        learning_rate=lr,
        lr_scheduler_type="constant",
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=16,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        dataloader_pin_memory=False,
    )
    GRPOTrainer(
        model,
        reward_funcs=count_even,
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": "word5 word6"}] * 16),
        processing_class=tokenizer(),
        callbacks=[publish],
    ).train()


def count_even(completions: list[str], **_: object) -> list[float]:
    """How many words of an answer have an even number."""
    return [float(sum(word[-1] in "02468" for word in text.split())) for text in completions]


if __name__ == "__main__":
    typer.run(main)

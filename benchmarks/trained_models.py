"""Changes made by training: the quickstart's CLIP adapted with RST, and a causal language model tuned at RL's rates."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.checkpoint_pair import CheckpointPair
from benchmarks.synthetic_text import VOCABULARY, batch
from examples.digit_adaptation import Method, Training, adapt, digit_student, digit_task
from examples.rendered_pretraining import RenderedPretraining
from examples.small_clip import pretrained_clip

CACHE = Path(".cache")  # the quickstart's


@dataclass(frozen=True)
class ClipRun:
    """How to train the quickstart's CLIP, and the shares that RST keeps."""

    pretraining: RenderedPretraining = field(default_factory=RenderedPretraining)
    training: Training = field(default_factory=Training)
    source_images: int = 2_000
    ratios: tuple[float, ...] = (0.02, 0.005)


@dataclass(frozen=True)
class LanguageRun:
    """A small Llama: pretrained in float32, then tuned with plain AdamW at the rate of RL fine-tuning.

    Attributes:
        warm_up: tuning steps before the base is taken, until Adam's averages have settled.
        steps: tuned models are taken after these many further steps.
    """

    width: int = 256
    layers: int = 12
    sentences: int = 8  # of 64 bytes, in a batch
    pretraining: int = 60
    learning_rate: float = 1e-6
    warm_up: int = 8
    steps: tuple[int, ...] = (1, 8)


def adapted_clips(run: ClipRun, cache: Path = CACHE) -> Iterator[CheckpointPair]:
    """The image encoder before and after adaptation to handwritten digits, once for each share; float32."""
    encoder = (clip := pretrained_clip(run.pretraining, cache)).visual
    task = digit_task(clip, run.source_images)
    for ratio in run.ratios:
        generator = torch.Generator().manual_seed(0)
        student = digit_student(encoder, generator)
        adapt(student, Method("RST", ratio=ratio), task, run.training, generator)
        name = f"float32, small CLIP adapted with RST, {100 * ratio:g} % kept"
        yield CheckpointPair(name, _weights(encoder, torch.float32), _weights(student.encoder, torch.float32))


def tuned_language_models(run: LanguageRun) -> Iterator[CheckpointPair]:
    """The model at one moment of its tuning and some steps later, in bfloat16 as it would be shipped.

    Tuned twice: with bfloat16 weights throughout, and with float32 weights that are cast for shipping.
    """
    pretrained = _pretrained(run)
    yield from _tuned(copy.deepcopy(pretrained).to(torch.bfloat16), "bfloat16 weights", run)
    yield from _tuned(pretrained, "float32 masters", run)


def full_fine_tune(run: LanguageRun, dtypes: Sequence[torch.dtype]) -> Iterator[CheckpointPair]:
    """The pretrained model and one tuned with float32 masters, after the last of the steps, in each dtype."""
    model, generator = _pretrained(run), torch.Generator().manual_seed(1)
    bases = [_weights(model, dtype) for dtype in dtypes]
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.learning_rate, weight_decay=0.0)
    _train(model, optimizer, run, run.steps[-1], generator)
    for dtype, base in zip(dtypes, bases, strict=True):
        name = f"{str(dtype).removeprefix('torch.')}, causal LM, AdamW at {run.learning_rate:g}, steps: {run.steps[-1]}"
        yield CheckpointPair(name, base, _weights(model, dtype))


def _pretrained(run: LanguageRun) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = _language_model(run)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    _train(model, optimizer, run, run.pretraining, torch.Generator().manual_seed(0))
    return model


def _tuned(model: nn.Module, kind: str, run: LanguageRun) -> Iterator[CheckpointPair]:
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.learning_rate, weight_decay=0.0)
    _train(model, optimizer, run, run.warm_up, generator)
    base = _weights(model, torch.bfloat16)
    done = 0
    for steps in run.steps:
        _train(model, optimizer, run, steps - done, generator)
        done = steps
        name = f"bfloat16, causal LM with {kind}, AdamW at {run.learning_rate:g}, steps: {steps}"
        yield CheckpointPair(name, base, _weights(model, torch.bfloat16))


def _language_model(run: LanguageRun) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=run.width,
        intermediate_size=8 * run.width // 3,
        num_hidden_layers=run.layers,
        num_attention_heads=run.width // 64,
        num_key_value_heads=run.width // 64,
        max_position_embeddings=128,
    )
    return LlamaForCausalLM(config)


def _train(
    model: nn.Module, optimizer: torch.optim.Optimizer, run: LanguageRun, steps: int, generator: torch.Generator
) -> None:
    for _ in range(steps):
        tokens = batch(run.sentences, 64, generator)
        loss = model(input_ids=tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def _weights(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: weight.detach().to(dtype, copy=True) for name, weight in model.named_parameters()}

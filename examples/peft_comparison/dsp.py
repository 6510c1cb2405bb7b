"""Counts of what RN50 and ViT-B/16 store for Office-Home's 12 tasks with each tuning, compared with Table VII."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import open_clip
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from examples.peft_comparison.tuning import count, is_bias

TASKS = 12
CLASSES = 65

PAPER = {
    "RN50": {
        "Full fine-tuning": 460.4,
        "Linear probe": 0.80,
        "BitFit": 1.12,
        "LoRA r=1": 1.76,
        "LoRA r=4": 4.04,
        "RST tau=1e-6": 1.23,
    },
    "ViT-B-16": {
        "Full fine-tuning": 1034.8,
        "Linear probe": 0.40,
        "BitFit": 1.40,
        "LoRA r=1": 3.40,
        "LoRA r=4": 12.0,
        "AdaLoRA r=2 to 1": 2.56,
        "AdaLoRA r=8 to 4": 6.09,
        "RST tau=1e-6": 1.02,
    },
}
"""Table VII, in millions; RST as in Figure 4, which has its threshold."""


@dataclass(frozen=True)
class Reading:
    """One way to read what a row of Table VII counts.

    Attributes:
        architecture: a key of `PAPER`.
        method: the row.
        modules: what is counted, in words.
        encoder: parameters that a task stores of the encoder.
        head: weights of the head; the paper counts one linear layer without bias (App. Table I).
        remark: why the paper's figure is met or missed.
    """

    architecture: str
    method: str
    modules: str
    encoder: int
    head: int
    remark: str = ""

    @property
    def dsp(self) -> float:
        """Of all tasks together, in millions."""
        return TASKS * (self.encoder + self.head) / 1e6

    @property
    def paper(self) -> float | None:
        """The printed figure, None for a row that the paper lacks."""
        return PAPER[self.architecture].get(self.method)


def readings() -> Iterator[Reading]:
    """All rows, each counted on the real architecture."""
    yield from _rn50()
    yield from _vit()


def markdown() -> str:
    """The table of `readings`."""
    lines = [
        "| encoder | method | what is counted | parameters a task | DSP (M) | paper | difference | remark |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for reading in readings():
        paper = "-" if reading.paper is None else f"{reading.paper:.2f}"
        difference = "-" if reading.paper is None else f"{reading.dsp - reading.paper:+.2f}"
        lines.append(
            f"| {reading.architecture} | {reading.method} | {reading.modules} | {reading.encoder + reading.head:,} "
            f"| {reading.dsp:.2f} | {paper} | {difference} | {reading.remark} |"
        )
    for architecture, width in (("RN50", 1024), ("ViT-B-16", 512)):
        changed = PAPER[architecture]["RST tau=1e-6"] * 1e6 / TASKS - width * CLASSES
        lines.append(
            f"| {architecture} | RST tau=1e-6 | what training changed: {changed:,.0f} weights a task, by the paper "
            f"| - | - | {PAPER[architecture]['RST tau=1e-6']:.2f} | - | not a property of the architecture |"
        )
    return "\n".join(lines) + "\n"


def _rn50() -> Iterator[Reading]:
    name, head = "RN50", 1024 * CLASSES
    visual = build(name).visual
    convolutions = names_of(visual, nn.Conv2d)
    norms = sum(weight.numel() for key, weight in visual.named_parameters() if is_bias(key) and "attnpool" not in key)
    biases = sum(weight.numel() for key, weight in visual.named_parameters() if is_bias(key))

    yield Reading(
        name, "Full fine-tuning", "all weights", count(visual), head, "the paper rounds the encoder to 38.3 M"
    )
    yield Reading(name, "Linear probe", "head", 0, head)
    yield Reading(name, "BitFit", "BatchNorm's biases", norms, head)
    yield Reading(name, "BitFit", "those and the attention pool's", biases, head, "so the paper leaves the pool out")
    yield Reading(name, "LoRA r=1", "every convolution", adapter(name, 1, convolutions), head)
    yield Reading(
        name,
        "LoRA r=4",
        "every convolution",
        adapter(name, 4, convolutions),
        head,
        "four times r=1's 0.96 and the head's 0.80 make 4.64: 4.04 looks like a slip of one digit",
    )


def _vit() -> Iterator[Reading]:
    name, head = "ViT-B-16", 512 * CLASSES
    clip = build(name)
    mlps = names_of(clip.visual, nn.Linear, r".*mlp.*")
    dense = [*names_of(clip.visual, nn.MultiheadAttention), *mlps, *names_of(clip.visual, nn.Conv2d)]
    biases = {key: weight.numel() for key, weight in clip.visual.named_parameters() if is_bias(key)}
    without_norms = sum(size for key, size in biases.items() if not re.search(r"\bln_", key))
    towers = low_rank(clip)

    yield Reading(
        name, "Full fine-tuning", "all weights", count(clip.visual), head, "the paper rounds the encoder to 86.2 M"
    )
    yield Reading(name, "Linear probe", "head", 0, head)
    yield Reading(
        name, "BitFit", "biases but LayerNorm's", without_norms, head, "the paper adds rounded parts, 1.00 and 0.40"
    )
    yield Reading(
        name, "BitFit", "all biases", sum(biases.values()), head, "so the paper leaves LayerNorm's out, unlike RN50's"
    )
    for rank in (1, 4):
        yield Reading(
            name,
            f"LoRA r={rank}",
            "image tower: attention, MLP, patches",
            adapter(name, rank, dense),
            head,
            "all that PEFT's LoRA takes of the tower that is trained",
        )
    yield Reading(
        name,
        "LoRA r=1",
        "every dense map of both towers",
        towers,
        head,
        "3.00 and 0.40; a guess: the text tower is frozen",
    )
    yield Reading(
        name,
        "LoRA r=4",
        "every dense map of both towers",
        4 * towers,
        0,
        "the same, and without the head: 4 times 3.00",
    )
    for rank in (1, 4):
        yield Reading(
            name,
            f"AdaLoRA r={2 * rank} to {rank}",
            "MLP",
            adapter(name, rank, mlps) + rank * len(mlps),
            head,
            "LoRA's weights and singular values, every layer at the final rank; PEFT's AdaLoRA takes no attention",
        )
        yield Reading(
            name,
            f"AdaLoRA r={2 * rank} to {rank}",
            "attention, MLP, patches",
            adapter(name, rank, dense) + rank * (len(dense) + len(names_of(clip.visual, nn.MultiheadAttention))),
            head,
            "the same if it took attention",
        )
    yield Reading(
        name,
        "SHiRA r=1",
        "MLP",
        adapter(name, 1, mlps),
        head,
        "as many as LoRA's, by PEFT's definition; RN50 has no linear layer that is called, so SHiRA cannot tune it",
    )


def build(architecture: str) -> open_clip.CLIP:
    """An architecture of open_clip without any weights."""
    with torch.device("meta"):
        return open_clip.CLIP(**open_clip.get_model_config(architecture))


def names_of(module: nn.Module, kind: type[nn.Module], pattern: str = ".*") -> list[str]:
    """Names of the modules of one class that match a regular expression."""
    return [name for name, part in module.named_modules() if isinstance(part, kind) and re.fullmatch(pattern, name)]


def adapter(architecture: str, rank: int, layers: list[str]) -> int:
    """Parameters that PEFT's LoRA trains on these layers of the image tower."""
    model = get_peft_model(build(architecture).visual, LoraConfig(r=rank, target_modules=layers))
    trainable, _ = model.get_nb_trainable_parameters()
    return int(trainable)


def low_rank(module: nn.Module) -> int:
    """Rows and columns of every dense map: what LoRA adds at rank 1, bare matrices `proj` and `text_projection` too."""
    total = 0
    for name, part in module.named_modules():
        if isinstance(part, nn.MultiheadAttention):
            total += sum(part.in_proj_weight.shape) + sum(part.out_proj.weight.shape)
        elif isinstance(part, nn.Linear) and not name.endswith("out_proj"):
            total += part.in_features + part.out_features
        elif isinstance(part, nn.Conv2d):
            total += part.weight[0].numel() + part.out_channels
    bare = [weight for name, weight in module.named_parameters() if re.search(r"(^|\.)(proj|text_projection)$", name)]
    return total + sum(sum(weight.shape) for weight in bare)

"""Ways to tune an encoder: which parts are trained, and what a task has to store afterwards."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from peft import AdaLoraConfig, LoraConfig, PeftConfig, PeftModel, ShiraConfig, get_peft_model
from peft.utils.warning import PeftWarning
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cmkd import Objective, Student
from examples.peft_comparison.dense_layers import call_dense_layers
from examples.peft_comparison.rank_allocation import RankAllocation
from rst import ResidualSparseTrainer

HEAD_FILE = "head.safetensors"
LORA_SCALE = 4
"""Of LoRA's product at every rank: alpha = 4 r, as PEFT's documentation has with r 8 and alpha 32."""

ADALORA_SCALE = 32
"""Of AdaLoRA's. PEFT starts its A and B at 0.02, LoRA's A at 1 / sqrt(3 width), so that its first steps in SGD are
about as large as LoRA's in layers of 128 to 512 channels. With LoRA's scale it did not leave the linear probe."""

MASK_SEED = 0
"""Of SHiRA's random positions: the same in every run, as if published once."""


@dataclass(frozen=True)
class Tuning(ABC):
    """One row of the comparison.

    Attributes:
        label: its name in tables.
        rate: which learning rate is tuned; the other stays as the benchmark has it.
        threshold: tau, if RST trains the encoder.
    """

    label: str
    rate: Literal["encoder_lr", "head_lr"] = "encoder_lr"
    threshold: float | None = None

    @abstractmethod
    def attach(self, student: Student, objective: Objective, *, iterations: int) -> Objective:
        """Make of the student, in place, what this tuning trains.

        Args:
            student: a pretrained encoder with BatchNorm statistics frozen, and a fresh head.
            objective: what the loop minimises.
            iterations: length of the run.

        Returns:
            What the loop is to minimise with this tuning.
        """

    @abstractmethod
    def store(self, student: Student, trainer: ResidualSparseTrainer | None, folder: Path) -> int:
        """Write to `folder` all that a task needs beside the pretrained encoder; return its number of parameters.

        Parameters are those of the paper's DSP: tuned weights and the whole head. Positions and statistics count in
        bytes, not here.
        """


@dataclass(frozen=True)
class FullTuning(Tuning):
    """Every weight of the encoder."""

    def attach(self, student: Student, objective: Objective, *, iterations: int) -> Objective:
        """Nothing to change."""
        return objective

    def store(self, student: Student, trainer: ResidualSparseTrainer | None, folder: Path) -> int:
        """Write the whole student."""
        save(student.state_dict(), folder / "student.safetensors")
        return count(student)


@dataclass(frozen=True)
class LinearProbe(Tuning):
    """Only the head; its learning rate is what there is to tune."""

    rate: Literal["encoder_lr", "head_lr"] = "head_lr"

    def attach(self, student: Student, objective: Objective, *, iterations: int) -> Objective:
        """Freeze the encoder."""
        student.encoder.requires_grad_(False)
        return objective

    def store(self, student: Student, trainer: ResidualSparseTrainer | None, folder: Path) -> int:
        """Write the head."""
        return store_head(student, folder)


@dataclass(frozen=True)
class BitFit(Tuning):
    """Only the biases (Ben Zaken et al., 2022), those of BatchNorm included: a ResNet's convolutions have none."""

    def attach(self, student: Student, objective: Objective, *, iterations: int) -> Objective:
        """Freeze all but the biases."""
        for name, weight in student.encoder.named_parameters():
            weight.requires_grad_(is_bias(name))
        return objective

    def store(self, student: Student, trainer: ResidualSparseTrainer | None, folder: Path) -> int:
        """Write biases and head."""
        biases = {name: weight for name, weight in student.encoder.named_parameters() if is_bias(name)}
        save(biases, folder / "biases.safetensors")
        return sum(weight.numel() for weight in biases.values()) + store_head(student, folder)


@dataclass(frozen=True)
class SparseResidual(Tuning):
    """RST (Algorithm 1): every weight trains, and goes back to its pretrained value where it moved no more than tau."""

    def attach(self, student: Student, objective: Objective, *, iterations: int) -> Objective:
        """Nothing to change: the loop attaches RST where `threshold` is set."""
        return objective

    def store(self, student: Student, trainer: ResidualSparseTrainer | None, folder: Path) -> int:
        """Write the delta, head included, packed."""
        assert trainer is not None
        delta = trainer.export()
        delta.save(folder / "delta.safetensors", encoding="packed")
        return delta.dsp()


@dataclass(frozen=True)
class Adapter(Tuning):
    """An adapter of PEFT on every dense layer of the encoder; the pretrained weights stay.

    Attributes:
        kind: which.
        rank: r; for AdaLoRA the average after its pruning, from twice as many. SHiRA trains as many weights as LoRA
            would at this rank.
    """

    kind: Literal["lora", "adalora", "shira"] = "lora"
    rank: int = 1

    def attach(self, student: Student, objective: Objective, *, iterations: int) -> Objective:
        """Wrap the encoder in a `PeftModel`."""
        layers = call_dense_layers(student.encoder)
        student.encoder = get_peft_model(student.encoder, self.config(layers, iterations))
        return RankAllocation(objective) if self.kind == "adalora" else objective

    def config(self, layers: list[str], iterations: int) -> PeftConfig:
        """PEFT's settings. AdaLoRA prunes from a tenth of the run on and is done after three quarters of it."""
        if self.kind == "shira":
            # PEFT's positions are sound, and torch warns until it is told yes or no
            torch.sparse.check_sparse_tensor_invariants.disable()  # type: ignore[no-untyped-call]
            return ShiraConfig(r=self.rank, random_seed=MASK_SEED, target_modules=layers)
        if self.kind == "lora":
            return LoraConfig(r=self.rank, lora_alpha=LORA_SCALE * self.rank, target_modules=layers)
        first = 2 * self.rank
        return AdaLoraConfig(
            init_r=first,
            target_r=self.rank,
            lora_alpha=ADALORA_SCALE * first,
            tinit=iterations // 10,
            tfinal=iterations // 4,
            total_step=iterations,
            target_modules=layers,
        )

    def store(self, student: Student, trainer: ResidualSparseTrainer | None, folder: Path) -> int:
        """Write PEFT's own folder, without the model card, and the head."""
        assert isinstance(student.encoder, PeftModel)
        with warnings.catch_warnings():
            # AdaLoRA may leave a layer no rank at all, which PEFT takes for a shard of a tensor
            warnings.filterwarnings("ignore", ".*LoRA tensor.* have invalid shape", PeftWarning)
            student.encoder.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink()
        return adapter_parameters(folder) + store_head(student, folder)


def adapter_parameters(folder: Path) -> int:
    """Floating-point numbers in an adapter's file: SHiRA's positions are integers."""
    tensors = load_file(folder / "adapter_model.safetensors")
    return sum(tensor.numel() for tensor in tensors.values() if tensor.is_floating_point())


def store_head(student: Student, folder: Path) -> int:
    """Write the head; return its number of parameters."""
    save(student.head.state_dict(), folder / HEAD_FILE)
    return count(student.head)


def count(module: nn.Module) -> int:
    """Parameters of a module."""
    return sum(weight.numel() for weight in module.parameters())


def is_bias(name: str) -> bool:
    """Whether a parameter is a bias, by its name: "conv.bias", "attn.in_proj_bias"."""
    return name.endswith("bias")


def save(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)

"""Which weights a row of the tables trains: all, the head, biases, low-rank updates, or sparse residuals (RST)."""

from typing import Literal, get_args

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Conv2d as LoraConv2d
from torch import nn

from cmkd import Student, freeze_batchnorm

Tuning = Literal["full", "linear_probe", "bitfit", "lora", "rst"]
TUNINGS: tuple[str, ...] = get_args(Tuning)


def prepare(student: Student, tuning: Tuning, *, lora_rank: int) -> None:
    """Freeze what the row does not train, in place; the head is always trained.

    BatchNorm's statistics are frozen for every row, as UDA methods on DeepLab-V2 have it: batches of two images of two
    domains are no statistics. Its weights and biases train where the row trains them.

    Args:
        student: pretrained encoder, and head.
        tuning: "full" and "rst" train everything, "linear_probe" the head, "bitfit" the encoder's biases as well,
            "lora" low-rank updates of the encoder's convolutions and linear layers.
        lora_rank: r of "lora"; its scale is 1.
    """
    freeze_batchnorm(student.encoder, affine=False)
    if tuning in ("full", "rst"):
        return
    student.encoder.requires_grad_(False)
    if tuning == "bitfit":
        for name, parameter in student.encoder.named_parameters():
            parameter.requires_grad_(name.endswith("bias"))
    if tuning == "lora":
        _add_lora(student.encoder, lora_rank)


def count_trained(student: Student) -> int:
    """Parameters that train: what a task must store (DSP, Sec. IV.A), unless RST keeps fewer."""
    return sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad)


def _add_lora(encoder: nn.Module, rank: int) -> None:
    layers = [name for name, layer in encoder.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=layers), encoder)
    for layer in encoder.modules():
        if isinstance(layer, LoraConv2d):
            for down in layer.lora_A.values():
                down.dilation = layer.get_base_layer().dilation  # peft leaves it at 1

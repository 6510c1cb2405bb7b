"""The status of an `RSTModel`, like that of PEFT's `get_model_status`, with additions."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from rst.live.adapter_bank import AdapterBank
from rst.live.adapters import TrainingAdapter


@dataclass(frozen=True)
class ModelStatus:
    """The state of a model and its adapters. Fields that PEFT has too have the same meaning.

    Attributes:
        base_model_type: the class of the base model.
        trainable_params: the number of parameters that require a gradient.
        total_params: the number of all parameters of the base.
        enabled: whether the active adapter is in the weights.
        active_adapters: the active adapter, if there is one.
        available_adapters: all loaded adapters.
        in_training: the adapters that are being trained.
        stored_params: for each adapter, the number of changed weights and of weights stored whole (DSP of one task);
            for an adapter in training, those that have changed so far.
        devices: the devices of the base's parameters.
    """

    base_model_type: str
    trainable_params: int
    total_params: int
    enabled: bool
    active_adapters: list[str]
    available_adapters: list[str]
    in_training: list[str]
    stored_params: Mapping[str, int]
    devices: list[str]

    @classmethod
    def of(cls, base_model: nn.Module, bank: AdapterBank) -> "ModelStatus":
        """Collect the status of a base model and its adapters."""
        parameters = list(base_model.parameters())
        return cls(
            base_model_type=type(base_model).__name__,
            trainable_params=sum(weight.numel() for weight in parameters if weight.requires_grad),
            total_params=sum(weight.numel() for weight in parameters),
            enabled=bank.enabled,
            active_adapters=[] if bank.active is None else [bank.active],
            available_adapters=list(bank),
            in_training=[name for name, adapter in bank.items() if isinstance(adapter, TrainingAdapter)],
            stored_params={name: adapter.dsp for name, adapter in bank.items()},
            devices=sorted({str(weight.device) for weight in parameters}),
        )

    def parameters_line(self) -> str:
        """Return PEFT's line of trainable parameters, and the number of parameters to store for the active adapter."""
        total = max(self.total_params, 1)
        stored = sum(self.stored_params[name] for name in self.active_adapters)
        return (
            f"trainable params: {self.trainable_params:,} || all params: {self.total_params:,} || "
            f"trainable%: {100 * self.trainable_params / total:.4f} || "
            f"stored params: {stored:,} || stored%: {100 * stored / total:.4f}"
        )

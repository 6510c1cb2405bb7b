"""AdaLoRA's part of the loop: its loss term, and after every step its pruning of singular values."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from peft import AdaLoraConfig, AdaLoraModel, PeftModel
from torch import Tensor, nn

from cmkd import DomainBatch, Objective, Phase, Student, TargetBatch


class RankAllocation(Objective):
    """An objective for an encoder with AdaLoRA: the same phases, each with what Zhang et al. (2023) add.

    PEFT adds the loss term itself only to outputs that carry a loss, as those of transformers do; here the loss is the
    objective's.
    """

    def __init__(self, objective: Objective) -> None:
        """Add to `objective`."""
        super().__init__()
        self.objective = objective
        self.needs_strong_images = objective.needs_strong_images
        self.needs_target_pass = objective.needs_target_pass

    def refresh_due(self, iteration: int, *, iterations_per_epoch: int, max_iterations: int) -> bool:
        """As the objective does."""
        return self.objective.refresh_due(
            iteration, iterations_per_epoch=iterations_per_epoch, max_iterations=max_iterations
        )

    def refresh(self, student: Student, target: Iterable[TargetBatch]) -> None:
        """As the objective does."""
        self.objective.refresh(student, target)

    def phases(self, student: Student, batch: DomainBatch, *, iteration: int, max_iterations: int) -> Iterator[Phase]:
        """Add the orthogonality term, then, once the loop has stepped, allocate ranks (its gradients still stand)."""
        encoder = student.encoder
        assert isinstance(encoder, PeftModel)
        tuner, config = encoder.base_model, encoder.peft_config["default"]
        assert isinstance(tuner, AdaLoraModel)
        assert isinstance(config, AdaLoraConfig)
        for phase in self.objective.phases(student, batch, iteration=iteration, max_iterations=max_iterations):
            term = orthogonality(encoder)
            yield replace(
                phase,
                total=phase.total + config.orth_reg_weight * term,
                terms={**phase.terms, "orthogonality": term.detach()},
            )
            tuner.update_and_allocate(iteration + 1)  # type: ignore[no-untyped-call]


def orthogonality(encoder: nn.Module) -> Tensor:
    """Mean over all A and B of `||A A^T - I||_F` and `||B^T B - I||_F`, 0-d: PEFT's form of the paper's Eq. 4."""
    distances = []
    for name, weight in encoder.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            gram = weight @ weight.T if "lora_A" in name else weight.T @ weight
            distances.append(torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device)))
    return torch.stack(distances).mean()

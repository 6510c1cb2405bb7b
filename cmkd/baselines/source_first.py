"""What SHOT and CDTrans have in common: training on the source alone first, then centroid pseudo-labels."""

import math
from collections.abc import Iterable, Iterator

from torch.nn import functional as F

from cmkd.baselines.target_pass import TargetMemory
from cmkd.objective import DomainBatch, Objective, Phase, Student, TargetBatch


class SourceFirst(Objective):
    """Source cross entropy for the first `source_fraction` of the iterations, `target_phase` afterwards."""

    needs_target_pass = True

    def __init__(self, *, source_fraction: float, label_smoothing: float = 0.1) -> None:
        """Set the share of iterations on the source alone, and the label smoothing of the source cross entropy.

        Raises:
            ValueError: if `source_fraction` is not between 0 and 1.
        """
        super().__init__()
        if not 0 <= source_fraction <= 1:
            raise ValueError(f"source_fraction must be between 0 and 1, got {source_fraction}")
        self.source_fraction = source_fraction
        self.label_smoothing = label_smoothing
        self.pseudo_labels = TargetMemory()

    def refresh_due(self, iteration: int, *, iterations_per_epoch: int, max_iterations: int) -> bool:
        """Return whether to refresh: when the source iterations end, and once per epoch after that.

        An earlier pass would label the target with an untrained head, and in a run shorter than two epochs of the
        target these labels would remain.
        """
        on_target = iteration - math.ceil(self.source_fraction * max_iterations)
        return on_target >= 0 and on_target % iterations_per_epoch == 0

    def refresh(self, student: Student, target: Iterable[TargetBatch]) -> None:
        """Compute pseudo-labels from class centroids over the whole target training set."""
        self.pseudo_labels.store_centroid_labels(student, target)

    def phases(self, student: Student, batch: DomainBatch, *, iteration: int, max_iterations: int) -> Iterator[Phase]:
        """Yield the single phase of this iteration.

        Raises:
            RuntimeError: after the source iterations, if `refresh` was not called or did not see an image of the batch.
        """
        if iteration < self.source_fraction * max_iterations:
            yield self._source_phase(student, batch)
        else:
            yield self.target_phase(student, batch)

    def target_phase(self, student: Student, batch: DomainBatch) -> Phase:
        """Return the method's phase for the iterations after the source phase."""
        raise NotImplementedError

    def _source_phase(self, student: Student, batch: DomainBatch) -> Phase:
        classification = F.cross_entropy(
            student(batch.source_images), batch.source_labels, label_smoothing=self.label_smoothing
        )
        return Phase(classification, {"classification": classification}, trains=("encoder", "head"))

"""The interface of every method: weighted losses of a batch, and an action after the optimiser step."""

from torch import Tensor, nn

from cmkd.segmentation import DenseStudent
from examples.segmentation.scene_batches import SceneBatch


class SceneObjective(nn.Module):
    """A method of adaptation: everything of it that is not the training loop. Nothing in it is trained."""

    def losses(self, student: DenseStudent, batch: SceneBatch, *, iteration: int) -> dict[str, Tensor]:
        """The terms by name, 0-d, with their weights: their sum is what the step minimises. Iterations count from 0."""
        raise NotImplementedError

    def after_step(self, student: DenseStudent) -> None:
        """Follow the student, after its optimiser's step."""


class SourceOnly(SceneObjective):
    """The network's own loss on the source; the target is not looked at."""

    def losses(self, student: DenseStudent, batch: SceneBatch, *, iteration: int) -> dict[str, Tensor]:
        """The source's loss."""
        return {"source": source_loss(student, batch.source_images, batch.source_labels)}


def source_loss(student: DenseStudent, images: Tensor, labels: Tensor) -> Tensor:
    """The network's own loss of labelled images."""
    return student.loss(student.head(student.encoder(images)), labels)

"""What a cell must store: RST's delta, or the weights that its row trains; counted in parameters and in bytes."""

from pathlib import Path

from safetensors.torch import save_file

from cmkd.segmentation import DenseStudent
from examples.segmentation.building import published
from examples.segmentation.tuning import count_trained
from examples.uda.artefact import Artefact
from rst import ResidualSparseTrainer, open_checkpoint


def store(student: DenseStudent, trainer: ResidualSparseTrainer | None, path: Path) -> Artefact:
    """Save what turns the network as the cell started into this student.

    Args:
        student: the trained student.
        trainer: RST's, if it was attached; its delta has the changed weights, and the head where that is saved whole.
        path: a safetensors file.
    """
    if trainer is not None:
        delta = trainer.export()
        delta.save(path)
        return Artefact(path, delta.dsp(), path.stat().st_size)
    trained = {
        name: weight.detach().contiguous() for name, weight in student.named_parameters() if weight.requires_grad
    }
    save_file(trained, path)
    return Artefact(path, count_trained(student), path.stat().st_size)


def store_base(student: DenseStudent, path: Path) -> None:
    """Save the network as a cell starts, under the names that a delta has: what `rst merge` merges into."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = open_checkpoint(published(student))  # transformers 5 names a live network's tensors otherwise
    save_file({name: weights[name].detach().contiguous() for name in weights}, path)

"""What a task must store: a sparse delta, a head, or a whole model; counted in parameters and in bytes."""

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file

from cmkd import Student
from rst import ResidualSparseTrainer


@dataclass(frozen=True)
class Artefact:
    """A saved file and its downstream parameters (DSP, Sec. IV.A) for this one task."""

    path: Path
    dsp: int
    bytes: int


def store(student: Student, trainer: ResidualSparseTrainer | None, path: Path, *, encoder: bool) -> Artefact:
    """Save what turns the pretrained encoder into this student.

    Args:
        student: the trained student.
        trainer: RST's, if it was attached; its delta has the changed weights and the whole head.
        path: a safetensors file.
        encoder: whether the encoder was trained; if not, the head is all.

    Returns:
        The file, and its parameters: RST's changed weights, or all of what was trained, with the whole head.
    """
    if trainer is not None:
        delta = trainer.export()
        delta.save(path)
        dsp = delta.dsp()
    else:
        part = student if encoder else student.head
        save_file({name: tensor.contiguous() for name, tensor in part.state_dict().items()}, path)
        dsp = sum(weight.numel() for weight in part.parameters())
    return Artefact(path, dsp, path.stat().st_size)

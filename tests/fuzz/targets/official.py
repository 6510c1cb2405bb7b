"""A checkpoint that the paper's authors released: sparse tensors in a pickle."""

from pathlib import Path

import torch

from rst import SparseDelta
from rst.interop.official import from_official
from tests.fuzz.pickle_mutation import mutate_zip
from tests.fuzz.target import Target
from tests.fuzz.targets.delta import base
from tests.fuzz.targets.pickles import pickled


def seeds() -> list[bytes]:
    residual = torch.zeros(30, 20)
    residual[3, 4], residual[7, 0] = 0.5, -0.25
    backbone = {"w": residual.to_sparse(), "scale": torch.tensor(0.5)}
    return [pickled({"backbone_state_dict": backbone, "head_state_dict": {"weight": torch.ones(2, 3)}}, True)]


def read(path: Path) -> SparseDelta:
    return from_official(path, base())


RELEASED = Target("official", "x.pt", seeds, mutate_zip, read, SparseDelta.summary)

"""Conversion of the sparse checkpoints that the paper's authors released into deltas."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rst.checkpoints.checkpoint import Checkpoint, Weights, open_checkpoint
from rst.checkpoints.unpickling import check_tensors, unpickle
from rst.delta.parameter_delta import BaseDigests, ParameterDelta, check_no_nan, check_real, gather
from rst.delta.sparse_delta import BaseIdentity, SparseDelta
from rst.errors import CheckpointError, ParameterMismatchError, naming_file
from rst.numerics.exactness import bits
from rst.numerics.fingerprint import digest
from rst.operations.export import BATCHNORM_BUFFERS

_BACKBONE, _HEAD = "backbone_state_dict", "head_state_dict"


def from_official(
    checkpoint: str | os.PathLike[str], base: Weights, *, backbone_prefix: str = "", head_prefix: str = "head."
) -> SparseDelta:
    """Read a `.pt` file of `backbone_state_dict`, residuals as `torch.sparse` tensors, and `head_state_dict`.

    Its residuals are meant for plain addition (Algorithm 2). The delta gives the sums `w0 + r` bit for bit, and leaves
    weights without a residual as they are.

    >>> from_official("ar2cl.pt", "clip.pt").save("ar2cl.safetensors")

    Args:
        checkpoint: the file, read with `weights_only=True`. Residuals may also be dense.
        base: the backbone's pretrained weights, or those of a model that contains it (see `open_checkpoint`).
        backbone_prefix: put before the backbone's names to give those of the base, such as "encoder.".
        head_prefix: put before the head's names. The head is stored whole.

    Raises:
        CheckpointError: an unreadable file, one without these two dicts of tensors, or malformed sparse tensors.
        NonFiniteError: a sum or a weight of the head is NaN.
        ParameterMismatchError: the base lacks a tensor, or has it in another shape or dtype; or a name of the head is
            one of the backbone.
    """
    source = str(checkpoint)
    backbone, head = _read(source)
    weights = open_checkpoint(base)
    parameters: dict[str, ParameterDelta] = {}
    buffers: dict[str, Tensor] = {}
    compared = 0
    for stored_name, stored in backbone.items():
        name = backbone_prefix + stored_name
        with naming_file(source):
            origin = _base_tensor(stored_name, name, stored, weights)
            change = _added(stored_name, origin, _sparse(stored_name, stored))
        if name.rpartition(".")[2] not in BATCHNORM_BUFFERS:
            compared += origin.numel()
            parameters |= {name: change} if change.nnz else {}
        elif change.nnz:
            buffers[name] = _filled_in(origin, change)
    weights.check_unchanged()
    heads = {head_prefix + stored_name: tensor.clone() for stored_name, tensor in head.items()}
    for name, tensor in heads.items():
        if name.removeprefix(backbone_prefix) in backbone and name.startswith(backbone_prefix):
            raise ParameterMismatchError(
                "occurs in both the backbone and the head; choose other prefixes", file=source, parameter=name
            )
        with naming_file(source):
            check_real(name, tensor)
            check_no_nan(name, tensor)
    return SparseDelta(
        parameters,
        {**buffers, **heads},
        frozenset(buffers),
        {alias: owner for alias, owner in weights.tied.items() if owner in parameters and alias not in parameters},
        BaseIdentity(name=Path(weights.source).name, weights=compared),
        {"converted_from": {"format": "official"}},
    )


def _read(source: str) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    if not Path(source).is_file():
        raise CheckpointError("no such file", file=source)
    with warnings.catch_warnings():  # the check of every position, which is intended, warns that it takes time
        warnings.filterwarnings("ignore", "Validating sparse tensor invariants", UserWarning)
        container = unpickle(Path(source))
    for key in (_BACKBONE, _HEAD):
        if not isinstance(container, Mapping) or not _is_state_dict(container.get(key)):
            raise CheckpointError(f"not a released checkpoint: {key} is not a dict of tensors", file=source)
    check_tensors(source, container[_HEAD], Path(source).stat().st_size)
    return container[_BACKBONE], container[_HEAD]


def _is_state_dict(part: Any) -> bool:
    named = isinstance(part, Mapping) and all(isinstance(name, str) for name in part)
    return named and all(isinstance(tensor, Tensor) for tensor in part.values())


def _base_tensor(stored_name: str, name: str, residual: Tensor, weights: Checkpoint) -> Tensor:
    if name not in weights:
        raise ParameterMismatchError(
            f"{weights.source} has no {name}; do you need to add a prefix?", parameter=stored_name
        )
    origin = weights[name].detach()
    if (residual.dtype, residual.shape) != (origin.dtype, origin.shape):  # a sparse residual of a dense weight
        found, wanted = (f"{tensor.dtype} {tuple(tensor.shape)}" for tensor in (residual, origin))
        raise ParameterMismatchError(f"{found} does not fit the base's {wanted}", parameter=stored_name)
    check_real(stored_name, origin)
    return origin


def _sparse(name: str, residual: Tensor) -> Tensor:
    """Return the residual as a coalesced COO tensor; an untrusted file may hold positions outside its shape."""
    if residual.layout == torch.strided:
        return residual.to_sparse()
    if residual.layout != torch.sparse_coo:
        raise CheckpointError(f"layout {residual.layout}; residuals must be sparse COO or dense", parameter=name)
    parts = residual._indices(), residual._values(), residual.shape
    try:
        return torch.sparse_coo_tensor(*parts, check_invariants=True).coalesce()
    except RuntimeError as error:
        raise CheckpointError(f"malformed sparse tensor ({error})", parameter=name) from error


def _added(name: str, origin: Tensor, residual: Tensor) -> ParameterDelta:
    """Return the change from `origin` to `origin + residual`, at the positions of the residual."""
    positions = torch.zeros(residual.values().numel(), dtype=torch.int64)
    for axis, size in zip(residual.indices(), residual.shape, strict=True):
        positions = positions * size + axis
    before = gather(origin.reshape(-1), positions)
    after = before + residual.values()
    check_no_nan(name, after)
    changed = bits(after) != bits(before)
    positions, before, after = positions[changed], before[changed], after[changed]
    digests = BaseDigests(digest(origin), digest(before)) if positions.numel() else None
    return ParameterDelta.at(positions, before, after, origin.shape, digests)


def _filled_in(origin: Tensor, change: ParameterDelta) -> Tensor:
    tuned = origin.clone().contiguous()
    flat = tuned.view(-1)
    positions = change.indices.long()
    flat[positions] = change.tuned_values(gather(flat, positions))
    return tuned

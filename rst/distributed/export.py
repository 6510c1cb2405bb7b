"""Sparse deltas of models that are sharded over processes: exported without gathering the model.

A `ResidualSparseTrainer` made after `fully_shard` or `parallelize_module` keeps and projects this process' shard of w0;
nothing else in the training loop changes. Every process makes the calls here, at the same point of the program:

>>> fully_shard(model)
>>> trainer = ResidualSparseTrainer(model, RSTConfig(ratio=0.001))
>>> trainer.attach(optimizer)
>>> ...  # train as always
>>> delta = export_sharded(trainer)  # the delta in the first process, None in the others
>>> if delta is not None:
...     delta.save("delta.safetensors")

>>> with apply_sharded(served_model, delta):  # each process changes its own shard, all or none; then every byte is back
...     served_model(images)

With DistributedDataParallel, whose processes all have the whole model, none of this is needed: `trainer.export()` and
`delta.apply(model)` are the same in each. A checkpoint that torch.distributed.checkpoint saved, by any number of
processes, is read like any other: `rst export`, `merge` and `verify` take its folder.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from rst.checkpoints.coordinates import Coordinates
from rst.checkpoints.model_config import config_of_module
from rst.delta.parameter_delta import BaseDigests, Op, ParameterDelta, check_no_nan, check_op
from rst.delta.sparse_delta import BaseIdentity, SparseDelta
from rst.distributed.entries import Entries, changed_entries, collect
from rst.errors import ConfigError
from rst.numerics.exactness import bit_equal, bits
from rst.numerics.fingerprint import digest
from rst.operations.extraction import Extraction
from rst.shards.blocks import is_sharded, local, locals_of
from rst.shards.collectives import is_first, together
from rst.shards.layout import ShardLayout
from rst.training.tracking import TrackedTensors
from rst.training.trainer import ResidualSparseTrainer


@torch.no_grad()
def export_sharded(trainer: ResidualSparseTrainer, op: Op = "add") -> SparseDelta | None:
    """Select once more, then extract what `trainer.export()` of one process with the same weights would, bit for bit.

    Each process compares its own shard with that of w0. The first process receives the changed entries, the modules
    saved whole, and, one parameter at a time, the w0 of parameters that changed: a delta records a digest of each.
    Its memory thus follows the largest parameter. Replicated parameters count once. Collective.

    Args:
        trainer: of a model with DTensors, the same in every process.
        op: what to store, as in `ResidualSparseTrainer.export`, but for "smallest", which reads w0 again:
            `rst.convert(delta, op="smallest", base=...)` does where the base is at hand.

    Returns:
        In the process of rank 0 the delta, on the CPU; in the others None.

    Raises:
        ConfigError: no tensor of the model is sharded, an unknown `op`, or as `trainer.export`.
        NonFiniteError: a weight is NaN in any process; all raise.
    """
    check_op(op)
    layout = trainer.layout
    if layout is None:
        raise ConfigError("no parameter of the model is a DTensor; call trainer.export()")
    live, base = trainer.read_for_export()
    tracked, parts, coordinates = trainer.tracked, locals_of(live), trainer.coordinates
    for name in coordinates.files_of_all([*tracked.sparse, *tracked.buffers, *tracked.saved]):
        coordinates.check_one_source(name)
    mine = together(lambda: _compare(layout, tracked, base, parts), layout.device)
    counts = layout.add_up({name: positions.numel() for name, (positions, _, _) in mine.items()})
    entries = collect(layout, mine)
    parameters: dict[str, ParameterDelta] = {}
    for name in (name for name in tracked.sparse if counts[name]):
        whole = layout.assemble(name, base[name])
        if whole is not None and entries is not None:
            parameters |= _changes(coordinates, name, whole, entries[name], op)
    in_files = coordinates.files_of_all
    names = [*tracked.buffers, *tracked.saved]
    tuned = {name: _whole(layout, name, live[name]) for name in names}
    origins = {name: _whole(layout, name, live[name], base[name]) for name in tracked.buffers}
    if not is_first():
        return None
    whole_tensors = Extraction(
        base=coordinates.to_files(origins),
        tuned=coordinates.to_files(tuned),
        names=in_files(names),
        whole=set(in_files(tracked.saved)),
        buffers=set(in_files(name for name in names if not isinstance(live[name], nn.Parameter))),
        config=trainer.config.to_dict(),
        coordinates="checkpoint",
        model_config=config_of_module(trainer.model),
    ).run()
    stored = parameters.keys() | whole_tensors.dense.keys()
    return replace(
        whole_tensors,
        parameters=parameters,
        tied={alias: owner for alias, owner in coordinates.ties_in_files(tracked.tied).items() if owner in stored},
        base=BaseIdentity(trainer.identity.name, trainer.identity.revision, sum(map(layout.numel, tracked.sparse))),
    )


def _changes(coordinates: Coordinates, name: str, base: Tensor, entries: Entries, op: Op) -> dict[str, ParameterDelta]:
    """Return the files' changes of one parameter's changed entries; `base` is all of its w0."""
    positions, origin, target = entries
    files = coordinates.files_of(name)
    if not any(coordinates.is_moved(file) for file in files):
        digests = BaseDigests(digest(base), digest(origin))
        return {files[0]: ParameterDelta.at(positions, origin, target, base.shape, digests, op)}
    tuned = base.clone(memory_format=torch.contiguous_format)
    bits(tuned).view(-1)[positions] = bits(target)
    before, after = coordinates.to_files({name: base}), coordinates.to_files({name: tuned})
    found = {file: ParameterDelta.between(file, before[file], after[file], None, op) for file in files}
    return {file: change for file, change in found.items() if change.nnz}


def _compare(
    layout: ShardLayout, tracked: TrackedTensors, base: Mapping[str, Tensor], parts: Mapping[str, Tensor]
) -> dict[str, Entries]:
    """Compare this process' blocks, and check for NaN in tensors stored whole."""
    moved = [name for name in tracked.buffers if not bit_equal(base[name], parts[name])]
    for name in (*moved, *tracked.saved):
        check_no_nan(name, parts[name])
    return {name: changed_entries(layout, name, base[name], parts[name]) for name in tracked.sparse}


def _whole(layout: ShardLayout, name: str, live: Tensor, stored: Tensor | None = None) -> Tensor:
    """Assemble a tensor (or the `stored` copy of its shards) in the first process; arbitrary elsewhere."""
    part = local(live) if stored is None else stored
    if not is_sharded(live):
        return part.cpu()
    whole = layout.assemble(name, part)
    return part if whole is None else whole

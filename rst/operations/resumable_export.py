"""Export of a huge checkpoint in parts, which a killed process leaves behind and the next one reuses."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from rst.delta.sparse_delta import Encoding, SparseDelta
from rst.files.partial_folder import PartialFolder
from rst.operations.extraction import Extraction, Progress, shifted

PART_BYTES = 4 << 30
"""Bytes of tuned weights that are compared between two saves: the most that a kill can lose."""


def export_in_parts(
    extraction: Extraction, job: str, output: Path, encoding: Encoding, on_progress: Progress | None
) -> SparseDelta:
    """Run an extraction and save its delta; the deltas of finished parts wait in a `PartialFolder` beside `output`.

    Args:
        extraction: the comparison of two sets of files.
        job: a digest of everything that determines the delta.
        output: the delta's file.
        encoding: as in `SparseDelta.save`.
        on_progress: called after each tensor with bytes done and bytes in all.
    """
    parts = dict(_parts(extraction))
    if len(parts) <= 1:
        delta = extraction.run(on_progress)
        delta.save(output, encoding)
        return delta
    total, done, found = sum(map(extraction.nbytes, extraction.names)), 0, []
    with PartialFolder(output, job, parts) as partial:
        for file, part in parts.items():
            after = done + sum(map(extraction.nbytes, part.names))
            if not partial.has(file):
                found.append(part.run(shifted(on_progress, done, total)))
                found[-1].save(partial.path / file)
                partial.finish(file)
            else:
                found.append(SparseDelta.load(partial.path / file))
                if on_progress:
                    on_progress(after, total)
            done = after
        delta = _joined(extraction, found)
        if extraction.op == "smallest":  # of all parts; each may have another operation
            delta = extraction.in_smallest_form(delta)
        delta.save(output, encoding)
        partial.discard()
    return delta


def _parts(extraction: Extraction) -> Iterator[tuple[str, Extraction]]:
    """Yield the extraction in parts, each with the name of the file for its delta."""
    names: list[str] = []
    number = size = 0
    for name in extraction.names:
        names.append(name)
        size += extraction.nbytes(name)
        if size >= PART_BYTES or name == extraction.names[-1]:
            number += 1
            yield f"part-{number:05}.safetensors", replace(extraction, names=names)
            names, size = [], 0


def _joined(extraction: Extraction, parts: Sequence[SparseDelta]) -> SparseDelta:
    """Join the deltas of all parts into what one run over all names returns."""
    parameters = {name: change for part in parts for name, change in part.parameters.items()}
    dense = {name: tensor for part in parts for name, tensor in part.dense.items()}
    return SparseDelta(
        parameters=parameters,
        dense=dense,
        buffers=frozenset().union(*(part.buffers for part in parts)),
        tied={alias: owner for alias, owner in extraction.tied.items() if owner in parameters or owner in dense},
        base=replace(extraction.identity, weights=sum(part.base.weights for part in parts)),
        config=dict(extraction.config),
        coordinates=extraction.coordinates,
        model_config=extraction.model_config,
    )

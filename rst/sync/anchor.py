"""An anchor: all weights of one step, as a safetensors checkpoint whose header names its state."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from rst.delta.embedded_digest import digest_fits, write_sealed
from rst.errors import CheckpointError, DeltaFormatError
from rst.files.atomic import atomic_write
from rst.files.safetensors_reader import map_privately
from rst.files.safetensors_writer import WEIGHTS_OF_TORCH, TensorSpec
from rst.files.strict_json import parse_json, to_json
from rst.sync.chain import HEADER_KEY, Link, Pointer, anchor_name, anchor_steps, read_link
from rst.sync.errors import ChainDamageError, ChainError, ChainGapError, ChainOrderError
from rst.sync.state import fingerprint_state
from rst.sync.store import Store


def write_anchor(store: Store, link: Link, specs: Mapping[str, TensorSpec], tensors: Iterable[Tensor]) -> int:
    """Write all weights of a step, tensor by tensor, and return the size of the file.

    Args:
        store: the store of the chain.
        link: link from the step to itself.
        specs: dtype and shape by name.
        tensors: on the CPU, in the order of `specs`.

    Raises:
        CheckpointError: a dtype that safetensors lacks.
    """
    metadata = {**WEIGHTS_OF_TORCH, HEADER_KEY: to_json(link.record())}

    def write(path: Path) -> None:
        with atomic_write(path) as temporary:
            write_sealed(temporary, specs, tensors, metadata)

    return store.put(anchor_name(link.to_step), write)


def read_anchor(store: Store, step: int) -> tuple[dict[str, Tensor], Link]:
    """Map all weights of a step, and check the file's digest and the state's fingerprint.

    Writes to the weights stay in memory. Copy weights that you keep: others may delete a file on a network disk, and
    reading a mapped page of it then kills the process.

    Raises:
        ChainGapError: the anchor does not exist.
        ChainDamageError: it is damaged, or belongs to another step.
    """
    name = anchor_name(step)
    where = f"{store.location}/{name}"
    with store.fetch(name) as path:
        try:
            contents, weights = map_privately(str(path))
        except CheckpointError as error:  # pruned since it was found
            raise ChainGapError(error.reason, file=where) from error
        except DeltaFormatError as error:
            raise ChainDamageError(error.reason, file=where, parameter=error.parameter) from error
    if not digest_fits(contents.data, contents.metadata.get("digest", "")):
        raise ChainDamageError("the digest does not match the contents; the file was altered or damaged", file=where)
    try:
        link = read_link(parse_json(contents.metadata.get(HEADER_KEY, "null")), where)
    except ValueError as error:
        raise ChainDamageError(f"its header cannot be read ({error})", file=where) from error
    if link.to_step != step:
        raise ChainDamageError(f"contains step {link.to_step}", file=where)
    if (found := fingerprint_state(weights, link.version)) != link.state_after:
        raise ChainDamageError(f"contains state {found}, but its header says {link.state_after}", file=where)
    return weights, link


def last_anchor(
    store: Store, pointer: Pointer, above: int = -1, until: int | None = None
) -> tuple[dict[str, Tensor], Link] | None:
    """Read the last intact anchor of the chain above a step, up to `until` if given; None if there is none.

    Raises:
        ChainError: there are anchors, and none of them is intact; the reason is that of the last one.
    """
    damage: ChainError | None = None
    for step in anchor_steps(store, pointer.step if until is None else until):
        if step <= above:
            break
        try:
            weights, link = read_anchor(store, step)
            if link.chain != pointer.chain or pointer.expected(step) not in (None, link.state_after):
                raise ChainOrderError(f"the anchor of step {step} belongs to another chain", file=store.location)
            return weights, link
        except ChainError as error:
            damage = damage or error
    if damage:
        raise damage
    return None

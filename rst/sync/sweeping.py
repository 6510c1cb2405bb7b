"""What a killed publisher leaves in the store, removed before another goes on."""

from rst.sync.chain import POINTER, Pointer, read_pointer, step_of_name
from rst.sync.errors import ChainDamageError
from rst.sync.store import Store


def sweep(store: Store) -> Pointer | None:
    """Delete temporary files and steps that were never published; returns the pointer, None if there is no chain.

    Raises:
        ChainDamageError: there are published steps and no pointer, or a damaged one. Nothing is deleted.
    """
    names = store.names()
    steps = {name: step for name in names if (step := step_of_name(name)) is not None}
    pointer = read_pointer(store) if POINTER in names else None
    if pointer is None and any(steps.values()):
        raise ChainDamageError(f"has steps up to {max(steps.values())} and no {POINTER}", file=store.location)
    last = pointer.step if pointer else -1
    unpublished = [name for name, step in steps.items() if step > last]
    for name in [*unpublished, *(name for name in names if _is_temporary(name))]:
        store.delete(name)
    return pointer


def _is_temporary(name: str) -> bool:
    inner = name.removeprefix(".").removesuffix(".tmp").rpartition(".")[0]
    return name.startswith(".") and name.endswith(".tmp") and (inner == POINTER or step_of_name(inner) is not None)

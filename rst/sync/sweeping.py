"""Removal of what a killed publisher leaves in the store, before another continues."""

from rst.files.temporaries import target_of
from rst.sync.chain import POINTER, Pointer, read_pointer, step_of_name
from rst.sync.errors import ChainDamageError
from rst.sync.store import Store


def find_chain(store: Store) -> Pointer | None:
    """Read the pointer; None if there is no chain yet.

    Raises:
        ChainDamageError: there are published steps but no pointer, or a damaged one.
    """
    names = store.names()
    if POINTER in names:
        return read_pointer(store)
    if last := max((step_of_name(name) or 0 for name in names), default=0):
        raise ChainDamageError(f"has steps up to {last} but no {POINTER}", file=store.location)
    return None


def sweep(store: Store, last: int) -> None:
    """Delete temporary files, and steps after the `last` published one. No other process may be writing."""
    for name in store.names():
        step = step_of_name(name)
        if _is_temporary(name) or (step is not None and step > last):
            store.delete(name)


def _is_temporary(name: str) -> bool:
    target = target_of(name)
    return target is not None and (target == POINTER or step_of_name(target) is not None)

"""Exact weight sync: a trainer publishes the change of each step, and followers apply it in place, bit for bit.

>>> from rst.sync import Follower, Publisher
>>> publisher = Publisher(model, "/shared/chain", anchor_every=100)   # in the trainer
>>> publisher.publish()                                               # after each optimizer step
>>> follower = Follower(copy_of_the_model, "/shared/chain")           # where the model generates
>>> follower.update()                                                 # now and then
"""

from rst.sync.chain import Link, Pointer, link_of, read_pointer
from rst.sync.errors import (
    ChainConflictError,
    ChainDamageError,
    ChainError,
    ChainGapError,
    ChainOrderError,
    ChainStateError,
)
from rst.sync.follower import Follower, Update
from rst.sync.pruning import Pruned, prune
from rst.sync.publisher import Published, Publisher
from rst.sync.state import fingerprint_state
from rst.sync.store import FolderStore, FsspecStore, Store, open_store
from rst.sync.verification import ChainReport, verify

__all__ = [
    "ChainConflictError",
    "ChainDamageError",
    "ChainError",
    "ChainGapError",
    "ChainOrderError",
    "ChainReport",
    "ChainStateError",
    "FolderStore",
    "Follower",
    "FsspecStore",
    "Link",
    "Pointer",
    "Pruned",
    "Published",
    "Publisher",
    "Store",
    "Update",
    "fingerprint_state",
    "link_of",
    "open_store",
    "prune",
    "read_pointer",
    "verify",
]

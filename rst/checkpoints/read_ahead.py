"""Reading from the disk while the tensors before are computed on."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import zip_longest

from torch import Tensor

from rst.checkpoints.checkpoint import Checkpoint
from rst.files.mapped_files import fetch

_WORTH_IT = 1 << 20  # bytes


def read_ahead(names: Sequence[str], *weights: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield the names; while the caller works on one, the system reads the next one's data from the disk.

    The data go into the system's cache of files, not into the process' own memory. Weights that are not mapped from
    files, and small tensors, are left to the caller's own reading.

    Raises:
        CheckpointError: a file was written to since it was opened.
    """
    checkpoints = [one for one in weights if isinstance(one, Checkpoint)]
    with ThreadPoolExecutor(1) as thread:  # the request itself waits, for room and for the disk's queue
        for name, following in zip_longest(names, names[1:]):
            for one in checkpoints if following is not None else ():
                if (tensor := one.mapped(following)) is not None and tensor.nbytes >= _WORTH_IT:
                    with suppress(RuntimeError):  # as Python exits, no thread takes work
                        thread.submit(fetch, tensor)
            yield name

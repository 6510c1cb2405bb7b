"""A cost model of weight sync: bytes, seconds and memory from the number of weights, the density and the ranks.

A step of a chain (`rst.sync`) changes a share d of N weights of b bytes; R processes share the work:

    bytes      N d (h(d) + v) / 8        h: entropy of a gap, v: of a step, in bits a changed weight
    publish    (2 N b / compare + N d (1 / keep + 1 / encode) + bytes / write) / R
               and N b (1 / fetch + 1 / write) / R where the publisher's copy is in a file larger than free memory
    follow     (bytes / read + N d / apply) / R
    memory     publisher N b / R for its copy; follower N d (8 + 2 b) / R, beside the weights themselves
    anchor     N b bytes, N b / write / R seconds, each n steps
    start      N b (1 / take + 1 / write) / R, once

compare, write, fetch, read, take are bytes a second; keep, encode, apply are changed weights a second.
R processes that publish a chain each, of their own shards, share everything. Where the first of them gathers all
changes into one delta (`rst.distributed.export_sharded`), only the comparison is shared.
"""

import math
from dataclasses import dataclass

STEPS = {-2: 0.1, -1: 0.4, 1: 0.4, 2: 0.1}
"""How often a changed weight moves by so many units in the last place, in the generated models."""
STEP_BITS = -sum(share * math.log2(share) for share in STEPS.values())


@dataclass(frozen=True)
class Rates:
    """What one process of a machine does in a second.

    Attributes:
        compare: bytes of both copies compared.
        keep: changed weights gathered, fingerprinted, and written to the publisher's copy.
        encode: changed weights encoded and sealed.
        write: bytes sealed that reach the disk.
        fetch: bytes that come from the disk.
        read: bytes of a delta read and checked.
        apply: changed weights decoded, fingerprinted and written to the model.
        take: bytes of weights that a new publisher looks through for NaN, fingerprints and copies.
    """

    compare: float
    keep: float
    encode: float
    write: float
    fetch: float
    read: float
    apply: float
    take: float


@dataclass(frozen=True)
class Model:
    """A model in training.

    Attributes:
        weights: N.
        width: b, bytes a weight.
        density: d, the share of weights that a step changes.
        ranks: R, processes that share the model.
        copy_on_disk: whether the publisher's copy has no room in memory.
    """

    weights: float
    width: int = 2
    density: float = 0.01
    ranks: int = 1
    copy_on_disk: bool = False

    @property
    def changed(self) -> float:
        """Weights that a step changes."""
        return self.weights * self.density

    @property
    def gap_bits(self) -> float:
        """Entropy of the distance to the next changed weight, where each is changed with probability d."""
        d = self.density
        return -math.log2(d) - (1 - d) / d * math.log2(1 - d)

    @property
    def step_bytes(self) -> float:
        """Bytes of a step's delta."""
        return self.changed * (self.gap_bits + STEP_BITS) / 8

    @property
    def bytes(self) -> float:
        """Bytes of the weights, and of an anchor."""
        return self.weights * self.width

    def publish_seconds(self, rates: Rates, *, one_delta: bool = False) -> float:
        """Seconds of a step where each rank publishes its shard; with `one_delta` the first encodes for all."""
        compare = 2 * self.bytes / rates.compare + self.changed / rates.keep
        if self.copy_on_disk:
            compare += self.bytes * (1 / rates.fetch + 1 / rates.write)
        encode = self.changed / rates.encode + self.step_bytes / rates.write
        return compare / self.ranks + encode / (1 if one_delta else self.ranks)

    def follow_seconds(self, rates: Rates) -> float:
        """Seconds until a follower of each rank's shard has a step."""
        return (self.step_bytes / rates.read + self.changed / rates.apply) / self.ranks

    def anchor_seconds(self, rates: Rates) -> float:
        """Seconds of writing all weights."""
        return self.bytes / rates.write / self.ranks

    def start_seconds(self, rates: Rates) -> float:
        """Seconds until a new publisher has its copy and the first anchor."""
        return self.bytes * (1 / rates.take + 1 / rates.write) / self.ranks

"""What weight sync costs, on paper: bytes, seconds and memory from the number of weights, the density and the ranks.

A step of a chain (`rst.sync`) changes a share d of N weights of b bytes; R processes share the work:

    bytes      N d (h(d) + v) / 8        h: entropy of a gap, v: of a step, in bits a changed weight
    publish    (2 N b / compare + N d / encode + bytes / write) / R
    follow     (bytes / read + N d / apply) / R
    memory     publisher N b / R for its copy; follower N d (8 + 2 b) / R, beside the weights themselves
    anchor     N b bytes, N b (1 / write + 1 / hash) / R seconds, each n steps

compare, write, read are bytes a second; encode, apply are changed weights a second; hash is bytes a second of weights.
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
        encode: changed weights encoded and sealed.
        write: bytes that reach the disk.
        read: bytes read and checked.
        apply: changed weights decoded, hashed and written to the model.
        hash: bytes of weights fingerprinted.
    """

    compare: float
    encode: float
    write: float
    read: float
    apply: float
    hash: float


@dataclass(frozen=True)
class Model:
    """A model in training.

    Attributes:
        weights: N.
        width: b, bytes a weight.
        density: d, the share of weights that a step changes.
        ranks: R, processes that share the model.
    """

    weights: float
    width: int = 2
    density: float = 0.01
    ranks: int = 1

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
        compare = 2 * self.bytes / rates.compare
        encode = self.changed / rates.encode + self.step_bytes / rates.write
        return compare / self.ranks + encode / (1 if one_delta else self.ranks)

    def follow_seconds(self, rates: Rates) -> float:
        """Seconds until a follower of each rank's shard has a step."""
        return (self.step_bytes / rates.read + self.changed / rates.apply) / self.ranks

    def anchor_seconds(self, rates: Rates) -> float:
        """Seconds of writing and fingerprinting all weights."""
        return self.bytes * (1 / rates.write + 1 / rates.hash) / self.ranks

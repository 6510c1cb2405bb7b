"""The changed share of every block in a stack of blocks, found by the numbers in the parameter names."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from rst.report.chart import LEFT, RIGHT, TOP, Bar, Chart, Tick, percent, round_steps
from rst.report.tensors import TensorRecord

_WIDTH, _HEIGHT, _FLOOR = 440.0, 220.0, 180.0
_WIDEST = 36.0
_FEWEST = 2  # fewest blocks of a stack
_BLOCK = re.compile(r"^(?:(.*?)\.)?([0-9]{1,6})(?:\.|$)")
_MOST_TICKS = 12


@dataclass(frozen=True)
class Block:
    """The parameters of a stack with the same number."""

    number: int
    changed: int
    of: int

    @property
    def density(self) -> float:
        """Return the changed share."""
        return self.changed / self.of if self.of else 0.0


@dataclass(frozen=True)
class Stack:
    """Blocks with the same name before their number, in the order of the numbers."""

    name: str
    blocks: Sequence[Block]


def stacks(tensors: Sequence[TensorRecord]) -> list[Stack]:
    """Group parameters by the text before the first number in their names, and by that number.

    `visual.layers.3.attn.weight` belongs to block 3 of the stack `visual.layers`. Tensors stored whole and stacks of
    one block are left out.
    """
    counts: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    for tensor in tensors:
        found = _BLOCK.match(tensor.name)
        if found and tensor.kind in ("sparse", "unchanged"):
            count = counts[found[1] or ""][int(found[2])]
            count[0] += tensor.dsp
            count[1] += tensor.of
    grouped = [
        Stack(name, [Block(number, *count) for number, count in sorted(blocks.items())])
        for name, blocks in counts.items()
    ]
    return [stack for stack in grouped if len(stack.blocks) >= _FEWEST]


def depth_chart(stack: Stack, largest: float) -> Chart:
    """Draw one bar per block; `largest` is the density that the axis must reach, the same for all stacks."""
    steps = round_steps(largest)
    slot = (_WIDTH - LEFT - RIGHT) / len(stack.blocks)
    width = min(slot * 0.7, _WIDEST)
    scale = (_FLOOR - TOP) / steps[-1]
    centers = [LEFT + slot * (place + 0.5) for place in range(len(stack.blocks))]
    bars = [
        Bar(
            center - width / 2,
            _FLOOR - block.density * scale,
            width,
            block.density * scale,
            f"block {block.number}: {block.changed:,} of {block.of:,} weights changed ({percent(block.density)})",
        )
        for center, block in zip(centers, stack.blocks, strict=True)
    ]
    every = -(-len(bars) // _MOST_TICKS)
    densest = max(stack.blocks, key=lambda block: block.density)
    return Chart(
        title=f"Changed share of every block of {stack.name or 'the model'}",
        description=f"Block {densest.number} changed most, {percent(densest.density)}.",
        x_label="block",
        y_label="changed share",
        width=_WIDTH,
        height=_HEIGHT,
        bars=bars,
        x_ticks=[
            Tick(center, str(block.number)) for center, block in list(zip(centers, stack.blocks, strict=True))[::every]
        ],
        y_ticks=[Tick(_FLOOR - step * scale, percent(step)) for step in steps],
    )

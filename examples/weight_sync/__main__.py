"""Train a small language model in one process, follow and generate in another, and count the bytes.

python -m examples.weight_sync --steps 50 --lr 1e-5
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from examples.weight_sync.sizes import table
from examples.weight_sync.text import TOKENS_FILE, read_pieces, to_text
from examples.weight_sync.training import Step, train


def main(
    weights: Annotated[
        Path | None, typer.Option(help="Folder with stories260K.bin and tok512.bin; else a generated Llama.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps, each of them published.")] = 50,
    lr: Annotated[float, typer.Option(help="AdamW's learning rate.")] = 1e-5,
    anchor_every: Annotated[int, typer.Option(min=1, help="Steps between two anchors.")] = 20,
    store: Annotated[
        Path | None, typer.Option(help="Where the chain goes. Default: a folder deleted at the end.")
    ] = None,
) -> None:
    """Train, publish, follow, generate; then a table of what the steps cost by this and other means."""
    pieces = read_pieces(weights / TOKENS_FILE) if weights else None

    def show(step: Step) -> None:
        share = step.sizes.changed / step.sizes.weights
        verdict = "identical" if step.identical else "DIFFERENT"
        print(
            f"step {step.number:4d}  loss {step.loss:.4f}  {share:7.3%} changed  {step.sizes.packed_delta:9,d} bytes  "
        )
        print(f"           {verdict}; the follower says: {to_text(step.tokens, pieces)}", flush=True)

    with TemporaryDirectory() as temporary:
        done = train(store or Path(temporary) / "chain", weights, steps, lr, anchor_every, show)
    same = sum(step.identical for step in done)
    changed = sum(step.sizes.changed for step in done) / sum(step.sizes.weights for step in done)
    print(f"\n{done[0].sizes.weights:,} weights, {changed:.3%} changed a step; {same} of {len(done)} steps identical\n")
    print(table([step.sizes for step in done]))
    if same < len(done):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)

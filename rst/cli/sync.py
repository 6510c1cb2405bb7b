"""`rst sync`: publish checkpoints as the steps of a chain that others follow."""

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rst.cli.allow_class import AllowClass
from rst.cli.console import human_size, print_json, print_warning, say
from rst.cli.hub_ids import local_weights
from rst.cli.op_option import Operation
from rst.cli.output_paths import check_output

if TYPE_CHECKING:
    from rst.sync import Publisher

PUBLISH_EXAMPLE = "Example: [bold]rst sync publish /shared/chain checkpoint-300/[/bold]"
FOLLOW_EXAMPLE = "Example: [bold]rst sync follow /shared/chain --into model.safetensors[/bold]"
PRUNE_EXAMPLE = "Example: [bold]rst sync prune /shared/chain --keep-anchors 2[/bold]"
VERIFY_EXAMPLE = "Example: [bold]rst sync verify s3://bucket/chain --json[/bold]"

Store = Annotated[str, typer.Argument(metavar="STORE", help="The chain's folder, or a URL that fsspec supports.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

_LONGEST_PAUSE = 60.0  # seconds between two attempts while a store does not answer

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="Exact weight sync by a chain of deltas.")


@app.command(epilog=PUBLISH_EXAMPLE)
def publish(
    store: Store,
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="Weights: checkpoint, shard index or model folder.")
    ],
    anchor_every: Annotated[
        int, typer.Option(min=1, help="Store all weights at every step that is a multiple of this.")
    ] = 100,
    operation: Annotated[
        Operation, typer.Option("--op", help="add: residuals; replace: new values; step: integers, smallest in bf16.")
    ] = Operation.STEP,
    allow_class: AllowClass = None,
    as_json: AsJson = False,
) -> None:
    """Publish CHECKPOINT as the chain's next step, or as its step 0 where STORE is empty."""
    from rst.sync import Publisher, open_store
    from rst.sync.chain import POINTER

    place = open_store(store)
    begun = POINTER in place.names()
    publisher = Publisher(
        local_weights(checkpoint), place, anchor_every=anchor_every, op=operation.value, base_storage="mmap"
    )
    if begun:
        _publish_next(publisher, as_json)
        return
    record = {"store": store, "step": 0, "state": publisher.state, "changed": 0, "delta_bytes": 0}
    if as_json:
        print_json(record | {"anchored": True})
        return
    say(f"{store}: a new chain, step 0 is {publisher.state}")


def _publish_next(publisher: "Publisher", as_json: bool) -> None:
    done = publisher.publish()
    if as_json:
        record = {"store": publisher.store.location, "step": done.step, "state": done.state, "changed": done.changed}
        print_json(record | {"delta_bytes": done.delta_bytes, "anchored": done.anchor_bytes > 0})
        return
    anchored = f", anchor of {human_size(done.anchor_bytes)}" if done.anchor_bytes else ""
    say(f"{publisher.store.location}: step {done.step} is {done.state}")
    say(f"{done.changed:,} of {done.weights:,} weights changed, {human_size(done.delta_bytes)}{anchored}")


@app.command(epilog=FOLLOW_EXAMPLE)
def follow(
    store: Store,
    into: Annotated[
        str,
        typer.Option("--into", help="A .safetensors file or model FOLDER/ to update; created if missing."),
    ],
    watch: Annotated[
        float | None,
        typer.Option(min=0.01, metavar="SECONDS", help="Keep running, and check for new steps at this interval."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Update the file or folder --into to the chain's last step, completely or not at all.

    A file's weights are held in memory; a folder's shards take twice their size on disk during the update.

    After the first update, --watch retries a store that does not answer, at growing intervals of up to a minute.
    """
    from rst.sync import open_store, read_pointer

    target = Path(into)
    is_folder = target.is_dir() or into.endswith(("/", os.sep))
    kind = None if is_folder else "the target --into, unless it is a FOLDER/,"
    check_output(target, [], force=True, kind=kind, is_folder=is_folder)
    state, pause = _follow_once(store, target, as_json), watch
    while watch is not None and pause is not None:
        sys.stdout.flush()
        time.sleep(pause)
        try:
            if read_pointer(open_store(store)).state != state:
                state = _follow_once(store, target, as_json)
            pause = watch
        except OSError as error:
            pause = min(2 * pause, max(watch, _LONGEST_PAUSE))
            print_warning(f"{store}: {error.strerror or error}; trying again in {pause:g} s")


def _follow_once(store: str, into: Path, as_json: bool) -> str:
    from rst.sync.checkpoint_follower import follow_into

    came_from, step, state = follow_into(into, store)
    if as_json:
        print_json({"store": store, "into": str(into), "from_step": came_from, "step": step, "state": state})
    else:
        say(f"{into}: step {step} is {state}, from {'an anchor' if came_from is None else f'step {came_from}'}")
    return state


@app.command(epilog=PRUNE_EXAMPLE)
def prune(
    store: Store,
    keep_anchors: Annotated[int, typer.Option(min=1, help="How many of the last anchors to keep.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Delete anchors and deltas before one of the last anchors; followers further behind continue from an anchor."""
    from dataclasses import asdict

    from rst.sync import prune as prune_chain

    pruned = prune_chain(store, keep_anchors)
    if as_json:
        print_json({"store": store, **asdict(pruned)})
        return
    say(f"{store}: begins with step {pruned.first}; {pruned.anchors:,} anchors and {pruned.deltas:,} deltas deleted")


@app.command(epilog=VERIFY_EXAMPLE)
def verify(store: Store, as_json: AsJson = False) -> None:
    """Replay a chain in memory, and check every file, its position in the chain, and the state after each step."""
    from dataclasses import asdict

    from rst.sync import verify as verify_chain

    report = verify_chain(store)
    if as_json:
        print_json({"ok": True, "store": store, **asdict(report), "anchors": list(report.anchors)})
        return
    say(f"{store}: intact from step {report.first} to {report.step}, which is {report.state}")
    say(
        f"{report.deltas:,} deltas, {len(report.anchors):,} {'anchor' if len(report.anchors) == 1 else 'anchors'}, "
        f"{report.changed:,} changes of {report.weights:,} weights"
    )

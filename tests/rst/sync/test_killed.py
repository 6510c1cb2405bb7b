"""A process killed at any point: what was published stays, and no model or file is ever half a step on."""

import json
import os
import random
import signal
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rst import CheckpointError, open_checkpoint
from rst.live.patch import Patch
from rst.numerics.exactness import bit_equal
from rst.sync import Follower, Publisher, fingerprint_state, read_pointer, verify
from rst.sync.checkpoint_follower import follow_into
from rst.sync.store import FolderStore

State = dict[str, Tensor]
# what touches a file: making, opening, syncing, renaming it
TOUCHES = ((tempfile, "mkstemp"), (Path, "open"), (os, "fsync"), (os, "chmod"), (os, "replace"), (os, "unlink"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


def state_at(step: int) -> State:
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(size, generator=generator).bfloat16() for name, size in (("a", 40), ("b", 7))}
    for number in range(step):
        state["a"][3 * number : 3 * number + 5] *= 1.01
        state["b"][number % 7] += 1
    return state


def in_a_child(work: Callable[[], object]) -> int:
    """Run `work` in a forked process; returns the signal that ended it, 0 if it came to its end."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(99)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def killed_at(point: int, work: Callable[[], object]) -> bool:
    """Run `work` in a child that is killed before its operation number `point` on a file; False once it has none."""

    def work_until_killed() -> None:
        done = count()
        for owner, name in TOUCHES:
            original = getattr(owner, name)

            def counted(*args, _original=original, **kwargs):
                if next(done) == point:
                    os.kill(os.getpid(), signal.SIGKILL)
                return _original(*args, **kwargs)

            setattr(owner, name, counted)
        work()

    return in_a_child(work_until_killed) == signal.SIGKILL


def same(left: State, right: State) -> bool:
    return left.keys() == right.keys() and all(bit_equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("anchor_every", [2, 100])
def test_a_publisher_killed_at_any_point_loses_nothing_published(tmp_path, anchor_every) -> None:
    seen = set()
    for point in count():
        store = tmp_path / str(point)
        live = state_at(0)
        publisher = Publisher(live, store, anchor_every=anchor_every)
        live["a"].copy_(state_at(1)["a"])
        live["b"].copy_(state_at(1)["b"])
        publisher.publish()

        def publish_second(store=store) -> None:
            Publisher(state_at(2), store, anchor_every=anchor_every).publish()

        killed = killed_at(point, publish_second)
        step = read_pointer(FolderStore(store)).step
        seen.add(step)
        assert step == 2 or killed
        assert verify(store).step == step
        followed = state_at(0)
        assert Follower(followed, store).update().step == step
        assert same(followed, state_at(step))

        resumed = Publisher(state_at(3), store, anchor_every=anchor_every)
        assert resumed.step == step
        assert resumed.publish().delta_bytes > 0
        assert Follower(followed, store).update().step == step + 1
        assert same(followed, state_at(3))
        assert verify(store).step == step + 1
        assert not [path for path in store.iterdir() if path.name.startswith(".")]
        if not killed:
            break
    assert seen == {1, 2}
    assert point >= 10  # operations on files; pathlib of Python 3.10 has just these


def test_a_publisher_killed_at_its_start_leaves_a_chain_or_none(tmp_path) -> None:
    for point in count():
        store = tmp_path / str(point)
        killed = killed_at(point, lambda store=store: Publisher(state_at(0), store))
        assert Publisher(state_at(1), store).publish().step == 1
        followed = state_at(0)
        assert Follower(followed, store).update().step == 1
        assert same(followed, state_at(1))
        if not killed:
            break
    assert point > 5


def test_a_publisher_killed_at_any_moment(tmp_path) -> None:
    followed = state_at(0)
    Publisher(state_at(0), tmp_path, anchor_every=5)
    follower = Follower(followed, tmp_path)
    reached = 0

    def publish_on() -> None:
        live = state_at(0)
        publisher = Publisher(live, tmp_path, anchor_every=5)
        for step in count():
            live["a"].copy_(state_at(step % 9)["a"])
            live["b"].add_(1)
            publisher.publish()

    def publish_and_be_killed() -> None:
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.05, 0.5))
        publish_on()

    for _ in range(6):
        assert in_a_child(publish_and_be_killed) == signal.SIGKILL
        step = follower.update().step
        assert step >= reached
        reached = step
        assert verify(tmp_path).step == step
        assert fingerprint_state(followed) == follower.state
    assert reached > 0


def publish_two_steps(chain: Path) -> None:
    live = state_at(0)
    publisher = Publisher(live, chain)
    for step in (1, 2):
        for name, tensor in state_at(step).items():
            live[name].copy_(tensor)
        publisher.publish()


def test_a_following_file_is_old_or_new_wherever_its_follower_is_killed(tmp_path) -> None:
    publish_two_steps(tmp_path / "chain")
    seen = set()
    for point in count():
        file = tmp_path / f"{point}.safetensors"
        save_file(state_at(0), file)
        killed = killed_at(point, lambda file=file: follow_into(file, tmp_path / "chain"))
        step = next((step for step in (0, 2) if same(load_file(file), state_at(step))), None)
        assert step is not None
        seen.add(step)
        assert follow_into(file, tmp_path / "chain")[:2] == (step, 2)
        assert same(load_file(file), state_at(2))
        if not killed:
            break
    assert seen == {0, 2}


@pytest.mark.parametrize("begun", [True, False], ids=["shards", "nothing there"])
def test_a_following_folder_is_old_or_new_wherever_its_follower_is_killed(tmp_path, begun, monkeypatch) -> None:
    monkeypatch.setattr("rst.sync.folder_follower.LARGEST_SHARD", 1)
    publish_two_steps(tmp_path / "chain")
    seen = set()
    for point in count():
        folder = tmp_path / f"{point}"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        if begun:
            files = {name: f"model-0000{number}-of-00002.safetensors" for number, name in enumerate(state_at(0), 1)}
            for name, file in files.items():
                save_file({name: state_at(0)[name]}, folder / file)
            (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
        killed = killed_at(point, lambda folder=folder: follow_into(folder, tmp_path / "chain"))
        try:
            found = {name: tensor.clone() for name, tensor in open_checkpoint(folder).items()}
            step = next((step for step in (0, 2) if same(found, state_at(step))), None)
            assert step is not None
        except CheckpointError:
            assert not begun
            step = None
        seen.add(step)
        assert follow_into(folder, tmp_path / "chain")[:2] == (step, 2)
        assert same(dict(open_checkpoint(folder)), state_at(2))
        assert len(list(folder.glob("*.safetensors"))) == 2
        assert not list(folder.glob(".*.tmp"))
        if not killed:
            break
    assert seen == {0 if begun else None, 2}
    assert point >= 10


@pytest.mark.parametrize("by_anchor", [False, True])
@pytest.mark.parametrize("failing", [0, 1])
def test_a_failure_between_two_writes_puts_back_what_was_written(tmp_path, monkeypatch, failing, by_anchor) -> None:
    publisher = Publisher(live := state_at(0), tmp_path)
    for name, tensor in state_at(1).items():
        live[name].copy_(tensor)
    publisher.publish()
    before = state_at(0) if not by_anchor else {name: tensor * 3 for name, tensor in state_at(0).items()}
    followed = {name: tensor.clone() for name, tensor in before.items()}
    follower = Follower(followed, tmp_path)
    write, calls = Patch.write, count()

    def fail(patch: Patch, elements: object) -> None:
        write(patch, elements)
        if next(calls) == failing:
            raise KeyboardInterrupt

    monkeypatch.setattr(Patch, "write", fail)
    with pytest.raises(KeyboardInterrupt):
        follower.update()
    assert same(followed, before)
    follower.verify()
    assert follower.update().step == 1
    assert same(followed, state_at(1))

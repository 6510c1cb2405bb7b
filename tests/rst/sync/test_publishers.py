"""Several publishers on one store: one chain, one refusal; and one that does not hear that it was published."""

import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest
import torch
from torch import Tensor

from rst.numerics.exactness import bit_equal
from rst.sync import (
    ChainConflictError,
    ChainOrderError,
    FolderStore,
    Follower,
    Publisher,
    Store,
    lease,
    open_store,
    read_pointer,
    verify,
)
from rst.sync.chain import POINTER, delta_name
from rst.sync.store import LOCK
from tests.refusal import refused

pytestmark = pytest.mark.slow

State = dict[str, Tensor]
STEPS, RACES = 3, 15


def weights(number: float = 0) -> State:
    return {"a": torch.arange(30.0) + number, "b": torch.ones(3, dtype=torch.bfloat16)}


def publish_steps(location: str, number: int, both_there: Callable[[], object]) -> tuple[int, int]:
    """Publish steps; returns how many were acknowledged and how many refused."""
    live = weights(number)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # where the other's chain is gone on with by an anchor
        publisher = Publisher(live, location, anchor_every=2)
    both_there()
    for step in range(STEPS):
        live["a"][number + 2 * step] += 1
        try:
            publisher.publish()
        except ChainConflictError:
            return step, 1
    return STEPS, 0


def assert_one_chain(location: str, outcomes: list[tuple[int, int]]) -> None:
    assert sum(acknowledged for acknowledged, _ in outcomes) == read_pointer(open_store(location)).step
    assert sum(refusals for _, refusals in outcomes) == 1
    assert verify(location).step == STEPS
    assert Follower(weights(9), location).update().step == STEPS


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_threads_that_start_and_publish_at_once_end_in_one_chain_and_one_refusal(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("fsspec")
    for race in range(RACES):
        location = str(tmp_path / str(race)) if kind == "folder" else f"memory://races/{uuid4().hex}"
        start, both_there = threading.Barrier(2), threading.Barrier(2)
        outcomes: list[tuple[int, int]] = []

        def work(number: int, location=location, start=start, both_there=both_there, outcomes=outcomes) -> None:
            start.wait()
            outcomes.append(publish_steps(location, number, both_there.wait))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert_one_chain(location, outcomes)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_processes_that_start_and_publish_at_once_end_in_one_chain_and_one_refusal(tmp_path: Path) -> None:
    for race in range(10):
        location = tmp_path / str(race)
        children = []
        for number in range(2):
            children.append(os.fork())
            if children[-1] == 0:
                code = 99
                try:
                    acknowledged, refusals = publish_steps(str(location), number, partial(_wait_for_both, location))
                    code = acknowledged * 2 + refusals
                finally:
                    os._exit(code)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert_one_chain(str(location), [divmod(code, 2) for code in codes])


def _wait_for_both(location: Path) -> None:
    (location / f"here.{os.getpid()}").touch()
    while len(list(location.glob("here.*"))) < 2:
        time.sleep(0.001)


class DeafStore(FolderStore):
    """One whose answer to some pointers is lost, though it has them."""

    deaf = False

    def put(self, name: str, write: Callable[[Path], object]) -> int:
        size = super().put(name, write)
        if self.deaf and name == POINTER:
            raise ConnectionError("no answer")
        return size


@pytest.mark.parametrize("by_anchor", [False, True])
@pytest.mark.parametrize("changed_since", [False, True])
def test_a_publisher_that_lost_the_answer_recognises_its_own_pointer(
    tmp_path: Path, changed_since: bool, by_anchor: bool
) -> None:
    live, store = weights(), DeafStore(tmp_path)
    publisher = Publisher(live, store)
    if by_anchor:
        (tmp_path / "anchor-0000000000.safetensors").unlink()
        live["a"] += 1
        with pytest.warns(UserWarning, match="anchor"):
            publisher = Publisher(live, store)
    live["a"][3] += 1
    store.deaf = True
    with pytest.raises(ConnectionError):
        publisher.publish(step=1)
    store.deaf = False
    if changed_since:
        live["a"][5] += 1
        with refused(ChainOrderError, "step 1", file=tmp_path):
            publisher.publish(step=1)
        assert publisher.publish(step=2).step == 2
    else:
        assert publisher.publish(step=1).step == 1
    live["b"] += 1
    publisher.publish()
    followed = weights(7)
    if not by_anchor:
        assert verify(tmp_path).step == publisher.step
    Follower(followed, tmp_path).update()
    assert all(bit_equal(followed[name], live[name]) for name in live)


def test_a_constructor_deletes_nothing_and_the_first_step_sweeps(tmp_path: Path) -> None:
    live = weights()
    Publisher(live, tmp_path)
    left = [tmp_path / delta_name(3), tmp_path / f".{delta_name(1)}.abcdef01234567.tmp"]
    for path in left:
        path.write_bytes(b"left by a killed one")
    publisher = Publisher(live, tmp_path)
    assert all(path.exists() for path in left)
    publisher.publish()
    assert not any(path.exists() for path in left)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "EXPIRES", 0.6)
    monkeypatch.setattr("rst.sync.store._PATIENCE", 1.5)


@pytest.fixture
def location() -> str:
    pytest.importorskip("fsspec")
    return f"memory://leases/{uuid4().hex}"


@pytest.mark.usefixtures("impatient")
def test_the_lease_of_a_dead_publisher_is_broken(location: str) -> None:
    import fsspec

    live = weights()
    publisher = Publisher(live, location)
    fsspec.filesystem("memory").pipe_file(f"{location.removeprefix('memory:/')}/{LOCK}", b"of a dead one")
    assert publisher.publish().step == 1
    assert LOCK not in open_store(location).names()


@pytest.mark.usefixtures("impatient")
def test_the_lease_of_a_living_publisher_is_waited_for_and_not_broken(
    location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher = Publisher(weights(), location)
    with open_store(location).lock():
        monkeypatch.setattr(lease, "_HERE", lease.defaultdict(threading.Lock))  # as in another process
        with refused(ChainConflictError, "2 s", file=LOCK):
            publisher.publish()
    assert publisher.publish().step == 1


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_a_publisher_that_waits_too_long_says_so(tmp_path: Path, location: str, kind: str) -> None:
    store: Store = open_store(tmp_path if kind == "folder" else location)
    publisher = Publisher(weights(), store)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with store.lock():
            held.set()
            done.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    try:
        with refused(ChainConflictError, file=LOCK):
            publisher.publish()
    finally:
        done.set()
        holder.join()
    assert publisher.publish().step == 1


class LateStore(FolderStore):
    """One in which another publisher comes between the files of a step and its pointer, as if the lock were lost."""

    between: Callable[[], object] | None = None

    def put(self, name: str, write: Callable[[Path], object]) -> int:
        size = super().put(name, write)
        if self.between and name != POINTER:
            self.between, between = None, self.between
            between()
        return size

    @contextmanager
    def lock(self) -> Iterator[None]:
        yield


def test_a_publisher_that_lost_the_lock_does_not_publish(tmp_path: Path) -> None:
    store = LateStore(tmp_path)
    live, other = weights(), weights()
    publisher, second = Publisher(live, store), Publisher(other, store)
    live["a"] += 1
    other["b"] += 1
    store.between = second.publish
    with refused(ChainConflictError, "step 0", file=tmp_path):
        publisher.publish()
    assert verify(tmp_path).step == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_what_a_killed_upload_leaves_on_this_machine_is_swept(
    tmp_path: Path, location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = open_store(location)

    def be_killed(path: Path) -> None:
        path.write_bytes(b"a whole anchor")
        os.kill(os.getpid(), 9)

    child = os.fork()
    if child == 0:
        try:
            store.put("x", be_killed)
        finally:
            os._exit(99)
    os.waitpid(child, 0)
    assert list(tmp_path.rglob("x"))
    store.put("y", lambda path: path.write_bytes(b"y"))
    assert not list(tmp_path.iterdir())

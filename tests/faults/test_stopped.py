"""Whatever writes is stopped at every operation on a file: the old result or the new one is there, nothing else."""

import errno
import os
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from rst import CheckpointError
from tests.faults.interruption import Failing, in_a_child, killed_at
from tests.faults.jobs import JOBS, NEEDS, Job

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore"),  # of forking, and PEFT's
]


@pytest.fixture(params=JOBS)
def job(request: Any) -> Job:
    if request.param in NEEDS:
        pytest.importorskip(NEEDS[request.param])
    found: Job = JOBS[request.param]
    return found


def _between(job: Job, old: Any) -> Any:
    """SHiRA's adapter is two files, and between two adapters the folder is none."""
    return None if job is JOBS["SHiRA"] else old


def temporaries(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.name.endswith(".tmp")]


def names(folder: Path) -> set[str]:
    found = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return {name for name in found if ".tmp" not in name and not name.endswith(".lock")}


def results(folder: Path, job: Job) -> tuple[Any, Any, set[str]]:
    """The old result, the new one, and the names of all files there may be."""
    folder.mkdir()
    job.prepare(folder)
    old, before = job.result(folder), names(folder)
    job.run(folder)
    return old, job.result(folder), before | names(folder)


def test_killed_at_every_operation(tmp_path: Path, job: Job) -> None:
    old, new, allowed = results(tmp_path / "whole", job)
    seen = []
    for point in count():
        folder = tmp_path / str(point)
        folder.mkdir()
        job.prepare(folder)
        killed = killed_at(point, folder, lambda folder=folder: job.run(folder))
        found = job.result(folder)
        assert found in (old, new, _between(job, old)), point
        seen.append(found)
        assert names(folder) <= allowed
        job.run(folder)
        assert job.result(folder) == new
        assert not temporaries(folder), point
        if not killed:
            break
    assert seen[0] == old
    assert seen[-1] == new
    assert point >= 6


def test_a_full_disk_at_every_operation(tmp_path: Path, job: Job) -> None:
    _stop_at_every_operation(tmp_path, job, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))


@pytest.mark.parametrize("name", ["save packed", "merge pickles", "export", "adapter"])
def test_ctrl_c_at_every_operation(tmp_path: Path, name: str) -> None:
    _stop_at_every_operation(tmp_path, JOBS[name], KeyboardInterrupt())


def _stop_at_every_operation(tmp_path: Path, job: Job, error: BaseException) -> None:
    old, new, allowed = results(tmp_path / "whole", job)

    def at_each_in_turn() -> None:
        failing = Failing(error)
        for point in count():
            folder = tmp_path / str(point)
            folder.mkdir()
            job.prepare(folder)
            with failing.at(point, folder):
                stopped = _is_stopped(lambda folder=folder: job.run(folder))
            assert job.result(folder) in (old, new, _between(job, old)), point
            assert names(folder) <= allowed
            assert not temporaries(folder), point
            if not stopped and point > 5:
                return

    assert in_a_child(at_each_in_turn) == 0


def _is_stopped(run: Callable[[], object]) -> bool:
    try:
        run()
    except OSError as raised:
        assert raised.filename
        assert "tmp" not in Path(raised.filename).suffix
        return True
    except CheckpointError as refused:  # a folder that cannot be locked
        assert isinstance(refused.__cause__, OSError)
        return True
    except (KeyboardInterrupt, SystemExit):
        return True
    return False


def test_two_writers_of_one_file(tmp_path: Path) -> None:
    from tests.faults.jobs import delta

    wholes = []
    for number in (1, 2):
        delta(number).save(tmp_path / "x.safetensors")
        wholes.append((tmp_path / "x.safetensors").read_bytes())

    def write_often() -> None:
        def other() -> None:
            for _ in range(30):
                delta(2).save(tmp_path / "x.safetensors")

        child = os.fork()
        if child == 0:
            try:
                other()
                os._exit(0)
            finally:
                os._exit(99)
        for _ in range(30):
            delta(1).save(tmp_path / "x.safetensors")
            assert (tmp_path / "x.safetensors").read_bytes() in wholes
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    assert in_a_child(write_often) == 0
    assert (tmp_path / "x.safetensors").read_bytes() in wholes
    assert not temporaries(tmp_path)

"""Hostile files are refused by name or give valid objects: the short part of the long run, the same every time."""

import os
import random
import sys
from pathlib import Path

import pytest

from tests.fuzz.target import judge, limit_memory
from tests.fuzz.targets import TARGETS

_NEEDS_PEFT = ("peft_config", "peft_weights")
_NEEDS_TRANSFORMERS = ("resumed_record",)
_EXECUTIONS = 40

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # a damaged file may be warned of
    pytest.mark.skipif(sys.platform != "linux", reason="needs fork and /proc"),
]


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_are_refused_by_name_or_give_a_valid_object(tmp_path: Path, name: str) -> None:
    if name in _NEEDS_PEFT:
        pytest.importorskip("peft")
    if name in _NEEDS_TRANSFORMERS:
        pytest.importorskip("transformers")
    target, rng = TARGETS[name], random.Random(name)
    inside = tmp_path / "root" / "in"
    inside.mkdir(parents=True)
    target.prepare(inside)
    seeds = target.seeds()
    (inside / target.file_name).write_bytes(seeds[0])
    target.use(target.read(inside / target.file_name))
    assert judge(target, inside, seeds[0]) == "accepted"
    for contents in (*seeds[1:], *target.regressions()):
        judge(target, inside, contents)
    for _ in range(_EXECUTIONS):
        contents = rng.choice(seeds)
        for _ in range(rng.choice([1, 1, 2])):
            contents = target.altered(rng, contents)
        judge(target, inside, contents)


@pytest.mark.parametrize("name", ["delta_packed", "codec", "pickle_zip", "dcp_metadata", "safetensors"])
def test_no_file_asks_for_memory_before_it_is_looked_at(tmp_path: Path, name: str) -> None:
    child = os.fork()
    if child == 0:  # the limit is for good
        try:
            limit_memory(1 << 30)
            test_any_bytes_are_refused_by_name_or_give_a_valid_object(tmp_path, name)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

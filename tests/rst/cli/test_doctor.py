"""`rst doctor` tells what is here, how fast it is, and what to type where something is missing."""

import os
import warnings
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import rst as library
from rst.doctor import backends, speeds
from rst.doctor.advice import advice
from rst.doctor.backends import Backends
from rst.doctor.versions import Extra, core_versions, extras
from rst.training.projection_compiled import compiles

MEASURED = {"memory copy", "projection, eager", "pcodec decoding", "disk write", "disk read"}
FINE = Backends(
    cores=2, threads=2, cuda=[], has_driver=False, has_compiler=True, compiles=True, compile_seconds=1.0, reason=""
)


@pytest.fixture
def quick(monkeypatch):
    """Small measurements, on a machine without a compiler."""
    monkeypatch.setattr(speeds, "_WEIGHTS", 1 << 16)
    monkeypatch.setattr(speeds, "_ENTRIES", 1 << 12)
    monkeypatch.setattr(speeds, "_DISK_BYTES", 1 << 22)
    monkeypatch.setattr(speeds, "_SECONDS", 0.0)
    monkeypatch.setenv("PATH", "")
    compiles.cache_clear()
    yield
    compiles.cache_clear()


def test_everything_as_json(rst, quick):
    record = rst("doctor", "--json").json
    assert record["versions"]["rst"] == library.__version__
    assert record["versions"]["torch"] == metadata.version("torch")
    assert record["backends"]["has_compiler"] is False
    assert record["backends"]["compiles"] is False
    assert record["speeds"].keys() == MEASURED
    assert all(speed["value"] > 0 for speed in record["speeds"].values())
    assert any(text.startswith("no C++ compiler: the projection runs in eager mode") for text in record["advice"])


def test_for_people(rst, quick, tmp_path):
    ran = rst("doctor")
    assert ran.code == 0
    assert ran.out.startswith("python 3.")
    for name in [*MEASURED, "cores", "GPU", "eager works; compiled does not", "advice"]:
        assert name in ran.out
    assert ran.err == ""
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_measured_elsewhere(rst, quick, monkeypatch):
    measure = speeds.disk

    def refuse_here(folder: Path) -> object:
        if folder == Path():
            raise PermissionError(13, "Permission denied", str(folder))
        return measure(folder)

    monkeypatch.setattr(speeds, "disk", refuse_here)
    assert rst("doctor", "--json").json["speeds"].keys() == MEASURED


def test_a_compiler_that_fails_is_told_with_its_reason(monkeypatch):
    def fail(device: torch.device, dtype: torch.dtype) -> bool:
        warnings.warn("Eq. 17 is not compiled on cpu (CppCompileError: no headers)", stacklevel=2)
        return False

    monkeypatch.setattr(backends, "compiles", fail)
    monkeypatch.setattr(backends, "has_compiler", lambda device: True)
    found = backends.find_backends()
    assert not found.compiles
    assert advice(found, [])[0].startswith(
        "Eq. 17 is not compiled on cpu (CppCompileError: no headers); the projection"
    )


def test_advice_names_the_next_command():
    assert advice(FINE, []) == []
    cases = {
        "pip install triton": Backends(2, 2, ["H100"], True, False, False, 0.0, ""),
        "pytorch.org": Backends(2, 2, [], True, True, True, 0.0, ""),
        "torch uses 1 of 8 cores; unset OMP_NUM_THREADS": Backends(8, 1, [], False, True, True, 0.0, ""),
    }
    for words, found in cases.items():
        (text,) = advice(found, [])
        assert words in text
    half = Extra("peft", {"peft": "0.21", "transformers": None})
    none = Extra("lightning", {"lightning": None})
    assert advice(FINE, [half, none]) == [
        'the extra peft is incomplete, it lacks transformers; pip install "residual-sparse-training[peft]"'
    ]


def test_versions_and_extras_are_those_of_the_distribution(monkeypatch):
    assert {"torch", "safetensors", "numpy", "pcodec"} <= core_versions().keys()
    found = {extra.name: extra.packages for extra in extras()}
    assert found["serving"].keys() >= {"fastapi", "uvicorn"}
    assert found["peft"]["peft"] == (metadata.version("peft") if find_spec("peft") else None)
    assert not {"dev", "docs", "all"} & found.keys()

    def missing(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", missing)
    assert core_versions().keys() == {"python", "rst"}
    assert extras() == []


def test_what_is_not_installed_and_a_machine_with_nothing_amiss(rst, quick, monkeypatch):
    version = metadata.version

    def without_lightning(name: str) -> str:
        if name == "lightning":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", without_lightning)
    monkeypatch.setattr(metadata, "requires", lambda _: ["torch>=2", 'lightning>=2; extra == "lightning"'])
    monkeypatch.setattr(backends, "find_backends", lambda: FINE)
    monkeypatch.setattr(backends, "best_device", lambda: torch.device("cpu"))
    monkeypatch.delattr(os, "posix_fadvise")
    monkeypatch.setattr(speeds, "memory_and_projection", lambda device, compiled: [])
    ran = rst("doctor")
    assert ran.code == 0
    assert 'extra lightning       not installed (pip install "residual-sparse-training[lightning]")' in ran.out
    assert "from the system's cache" in ran.out
    assert ran.out.endswith("no problems found\n")

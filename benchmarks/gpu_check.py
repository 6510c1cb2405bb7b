"""`make gpu`: the tests that need a GPU, then measurements on it, in under four minutes; or a rehearsal without one.

A rehearsal (`make gpu REHEARSE=1`) runs the same code on the CPU, its kernels by Triton's interpreter, on tiny tensors.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.record import RESULTS
from benchmarks.results_page import section


def missing() -> list[str]:
    """What this machine lacks to run the kernels, in sentences."""
    lacks = []
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        driver = "a driver is installed" if shutil.which("nvidia-smi") or shutil.which("rocm-smi") else "no driver"
        lacks.append(f"no GPU that torch {torch.__version__} (built for {built or 'the CPU alone'}) sees; {driver}")
    if importlib.util.find_spec("triton") is None:
        lacks.append("no Triton: pip install triton")
    if not any(shutil.which(compiler) for compiler in ("cc", "gcc", "clang")):
        lacks.append("no C compiler, which Triton needs to launch kernels")
    return lacks


def main(
    rehearse: Annotated[bool, typer.Option("--rehearse", help="On the CPU, by Triton's interpreter.")] = False,
) -> None:
    """Test, measure, and print the table; results of a GPU go to benchmarks/results/gpu.json and benchmarks/GPU.md."""
    lacks = missing()
    if rehearse:
        print("a rehearsal: what follows says that everything runs, and nothing about speed")
    elif lacks:
        print("cannot run here:", *lacks, sep="\n- ")
        print("make gpu REHEARSE=1 runs everything on the CPU, by Triton's interpreter, on tiny tensors")
        raise SystemExit(1)
    environment = os.environ | ({"RST_REHEARSE": "1"} if rehearse else {})
    tests = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu", "-p", "no:cacheprovider"]
    failed = subprocess.run(tests, env=environment).returncode
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if rehearse else RESULTS
        _measure(folder, quick=rehearse)
        page = "\n".join(section(json.loads((folder / "gpu.json").read_text())))
    print(page)
    if not rehearse:
        (RESULTS.parent / "GPU.md").write_text(f"# On a GPU\n\n{page}")
    raise SystemExit(failed)


def _measure(folder: Path, *, quick: bool) -> None:
    """In a process of its own: Triton asks for its interpreter once, when it is imported."""
    code = f"from pathlib import Path; from benchmarks.gpu import run; run({quick}, Path({str(folder)!r}))"
    interpret = {"TRITON_INTERPRET": "1"} if quick else {}
    subprocess.run([sys.executable, "-c", code], env=os.environ | interpret, check=True)


if __name__ == "__main__":
    typer.run(main)

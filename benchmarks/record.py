"""One JSON file per family of measurements, with the machine, the versions and the command that made it."""

import json
import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("torch", "safetensors", "numpy", "pcodec", "blake3", "peft", "transformers", "open_clip_torch", "zipnn")


@dataclass(frozen=True)
class Row:
    """One line of a table: what was measured, in which setting, and the numbers by column."""

    name: str
    numbers: dict[str, float | int | str | None]


def write(
    family: str, title: str, rows: list[Row], notes: list[str], *, part: str | None = None, folder: Path = RESULTS
) -> Path:
    """Write `<folder>/<family>.json`, or `<family>-<part>.json` for one of several tables of a family."""
    folder.mkdir(exist_ok=True)
    stem = f"{family}-{part}" if part else family
    path = folder / f"{stem}.json"
    content = {
        "family": stem,
        "title": title,
        "command": f"python -m benchmarks {family}",
        "machine": machine(),
        "versions": versions(),
        "rows": [{"name": row.name, **row.numbers} for row in rows],
        "notes": notes,
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def machine() -> dict[str, Any]:
    """The processor, its cores, the memory, and the accelerator if there is one."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(memory, 1),
        "gpu": gpu,
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that take part, where installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

"""The long run: every target in a process of its own, and a table of executions and crashes.

python -m tests.fuzz --seconds 300            # in all; `make fuzz`
python -m tests.fuzz --seconds 60 codec       # one target
"""

import argparse
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

_FINDINGS = Path("outputs/fuzz")
_START = 600.0  # seconds to import and to finish, as other work may share the machine
_COLUMNS = "{:<16} {:>10} {:>9} {:>8} {:>7} {:>7}"


def main() -> int:
    """Fuzz, print, and return 1 if anything was found."""
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=float, default=300.0, help="of all targets together")
    arguments = parser.parse_args()
    names = arguments.targets or list(TARGETS)
    print("guided by coverage" if find_spec("atheris") else "at random; pip install atheris to be guided by coverage")
    print(_COLUMNS.format("target", "executions", "accepted", "refused", "unused", "crashes"), flush=True)
    total = [0, 0]
    for name in names:
        verdicts = _fuzz(name, arguments.seconds / len(names))
        executions = sum(verdicts.values())
        counts = [verdicts.get(key, 0) for key in ("accepted", "refused", "unused", "crashes")]
        print(_COLUMNS.format(name, executions, *counts), flush=True)
        total = [total[0] + executions, total[1] + counts[-1]]
    print(_COLUMNS.format("all", total[0], "", "", "", total[1]))
    return min(total[1], 1)


def _fuzz(name: str, seconds: float) -> dict[str, int]:
    """Run one target; what it found goes to outputs/fuzz."""
    with TemporaryDirectory(prefix="rst-fuzz-") as scratch:
        folder = Path(scratch)
        command = [sys.executable, "-W", "ignore", "-m", "tests.fuzz.worker", name, str(seconds), scratch]
        try:
            ran = subprocess.run(command, capture_output=True, timeout=seconds + _START)
            said, died = ran.stderr, f"exit code {ran.returncode}" if ran.returncode else ""
        except subprocess.TimeoutExpired as error:
            said, died = error.stderr or b"", f"has not ended after {seconds + _START:g} s"
        result = folder / "result.json"
        found: dict[str, Any] = json.loads(result.read_text()) if result.exists() else {"verdicts": {}, "findings": {}}
        if died:
            current = folder / "current"
            found["findings"][died] = current.read_bytes().hex() if current.exists() else ""
            found["verdicts"]["crashes"] = found["verdicts"].get("crashes", 0) + 1
            print(said.decode(errors="replace")[-2000:], file=sys.stderr)
    for number, (reason, contents) in enumerate(found["findings"].items()):
        _FINDINGS.mkdir(parents=True, exist_ok=True)
        path = _FINDINGS / f"{name}-{number}.hex"
        path.write_text(contents + "\n")
        print(f"{path}: {reason}", file=sys.stderr)
    return dict(found["verdicts"])


if __name__ == "__main__":
    sys.exit(main())

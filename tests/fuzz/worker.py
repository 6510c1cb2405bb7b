"""One target fuzzed in a process of its own, guided by coverage where atheris is installed."""

import json
import os
import random
import sys
import time
from collections import Counter
from pathlib import Path

_SPARE_MEMORY = 8 << 30  # of address space, beyond what is mapped when the run starts
_SAVE_EVERY = 1.0  # seconds
_LARGEST = 1 << 20  # bytes


def main() -> None:
    """`python -m tests.fuzz.worker TARGET SECONDS FOLDER`; leaves `result.json` in the folder."""
    name, seconds, folder = sys.argv[1], float(sys.argv[2]), Path(sys.argv[3])
    try:
        import atheris
    except ImportError:
        _Run(name, folder).at_random(seconds)
        os._exit(0)  # torch's modules take seconds of processor time to be collected, which look like a hang
    with atheris.instrument_imports(include=["rst"]):
        run = _Run(name, folder)
    atheris.Setup(
        [
            sys.argv[0],
            f"-max_total_time={int(seconds)}",
            "-timeout=60",
            "-rss_limit_mb=0",
            f"-max_len={_LARGEST}",
            str(run.corpus),
        ],
        run.one,
        custom_mutator=run.mutate,
    )
    atheris.Fuzz()


class _Run:
    """A target, its folders, and what has come of it so far."""

    def __init__(self, name: str, folder: Path) -> None:
        from tests.fuzz.target import limit_memory
        from tests.fuzz.targets import TARGETS

        self.target, self.folder = TARGETS[name], folder
        self.corpus, self.inside = folder / "corpus", folder / "root" / "in"
        self.corpus.mkdir()
        self.inside.mkdir(parents=True)
        self.target.prepare(self.inside)
        self.seeds = [*self.target.seeds(), *self.target.regressions()]
        for number, seed in enumerate(self.seeds):
            (self.corpus / str(number)).write_bytes(seed)
        self.verdicts: Counter[str] = Counter()
        self.findings: dict[str, str] = {}
        self.saved = 0.0
        limit_memory(_SPARE_MEMORY)

    def one(self, data: bytes) -> None:
        """Read one file. What must not happen is noted, so that the run goes on."""
        from tests.fuzz.target import FuzzError, judge

        (self.folder / "current").write_bytes(data)  # what a crash of the process leaves
        try:
            self.verdicts[judge(self.target, self.inside, data)] += 1
        except FuzzError as error:
            self.verdicts["crashes"] += 1
            self.findings.setdefault(str(error)[:80], data.hex())
        if time.monotonic() - self.saved > _SAVE_EVERY:
            self._save()

    def mutate(self, data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        altered = data
        for _ in range(rng.choice([1, 1, 2])):
            altered = self.target.altered(rng, altered)
        return altered if len(altered) <= max_size else data

    def at_random(self, seconds: float) -> None:
        rng, end = random.Random(time.time_ns()), time.monotonic() + seconds
        while time.monotonic() < end:
            self.one(self.mutate(rng.choice(self.seeds), _LARGEST, rng.getrandbits(32)))
        self._save()

    def _save(self) -> None:
        self.saved = time.monotonic()
        result = {"verdicts": self.verdicts, "findings": self.findings}
        (self.folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()

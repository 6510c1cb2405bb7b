"""What the tests of all examples share."""

import sys
from collections.abc import Callable

import pytest

pytest.register_assert_rewrite("tests.examples.killed_runs")


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command line's `main`, which must refuse the arguments with exit code 2, and returns what it says."""

    def run(main: Callable[[], None], *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["example", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == 2
        return " ".join(capsys.readouterr().out.split())

    return run

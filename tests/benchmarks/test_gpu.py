"""`make gpu` measures what it says, on tiny tensors here; without a GPU it says what is missing."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import gpu, gpu_check
from benchmarks.results_page import section


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_every_part_has_its_rows(tmp_path: Path) -> None:
    content = json.loads(gpu.run(True, tmp_path).read_text())
    page = "\n".join(section(content))
    for part in ("projection", "training step", "selection", "swap", "LoRA", "batch", "published step"):
        assert part in page


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_is_missing() -> None:
    import typer

    app = typer.Typer()
    app.command()(gpu_check.main)
    done = CliRunner().invoke(app, [])
    assert done.exit_code == 1
    assert torch.__version__ in done.output
    assert "REHEARSE=1" in done.output

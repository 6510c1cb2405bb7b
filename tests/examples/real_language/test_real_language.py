"""The comparison's steps on a tiny model of the same kind: what is trained, shipped, used and reported."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from examples.real_language import comparison
from examples.real_language.methods import DELTA, METHODS
from examples.real_language.packages import INSTALL, folder_of
from examples.real_language.report import write_report
from examples.real_language.task import Batch, Task
from examples.real_language.training_run import run
from examples.real_language.use_delta import use
from tests.rst.interop.conftest import RENAMED, save, tiny_llama

pytestmark = [pytest.mark.filterwarnings(RENAMED), pytest.mark.filterwarnings("ignore::UserWarning")]


class Tiny(Task):
    name = "tiny"
    metric = "loss"
    rates: ClassVar = {"full": (1e-3, 1e-2), "lora": (1e-3, 1e-2), "rst": (1e-3, 1e-2)}

    def save_base(self, folder: Path) -> None:
        save(tiny_llama(), folder)

    def load(self, folder: Path) -> nn.Module:
        return AutoModelForCausalLM.from_pretrained(folder)

    def batches(self, folder: Path, seed: int) -> list[Batch]:
        words = torch.randint(32, (4, 2, 8), generator=torch.Generator().manual_seed(seed))
        return [{"input_ids": some} for some in words]

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        loss: Tensor = model(**batch, labels=batch["input_ids"]).loss
        return loss

    @torch.no_grad()
    def score(self, model: nn.Module, folder: Path, part: str) -> dict[str, float]:
        model.eval()
        return {"loss": float(self.loss(model, self.batches(folder, 9)[0]))}


@pytest.fixture
def compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The outputs of a comparison of three steps a run, in this process."""
    task = Tiny()
    monkeypatch.setattr(comparison, "in_a_process", lambda _, *words: run(task, *words))
    monkeypatch.setattr(comparison, "SEARCH_STEPS", 2)
    monkeypatch.setattr(comparison, "STEPS", 3)
    monkeypatch.setattr(comparison, "SEEDS", 1)
    comparison.compare(task, tmp_path, tmp_path / "tiny.json")
    return tmp_path


def test_from_training_to_the_report(compared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = comparison.read(compared / "tiny.json")
    assert len(records) == 1 + 2 * len(METHODS) + len(METHODS)  # the base, the search, the final runs
    delta = (compared / "tiny" / "rst-0" / DELTA).stat().st_size
    (final,) = comparison.final_runs(Tiny(), "rst", records)
    assert final["shipped, MB"] == delta / 1e6
    assert final["loss"] != records["tiny base"]["loss"]

    base, on, off, merged, sent = list(use(Tiny(), compared))[1:]
    assert off.endswith("the same bits")
    assert sent.endswith("the same bits")
    assert on.split()[-1] == merged.split()[-1] == f"{final['loss']:.4f}"
    assert base.split()[-1] == f"{records['tiny base']['loss']:.4f}"

    table, figure = write_report([Tiny()], records, compared)
    assert all(f"| {title} |" in table.read_text() for title in METHODS.values())
    assert figure.read_bytes().startswith(b"\x89PNG")

    monkeypatch.setattr(comparison, "in_a_process", lambda *_: pytest.fail("a run that is done was run again"))
    comparison.compare(Tiny(), compared, compared / "tiny.json")


def test_a_missing_package_is_named_with_the_commands() -> None:
    with pytest.raises(SystemExit) as caught:
        folder_of("no_such_package_of_weights")
    assert "no_such_package_of_weights" in str(caught.value)
    assert INSTALL in str(caught.value)


def test_use_needs_a_trained_delta(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        list(use(Tiny(), tmp_path))
    assert DELTA in str(caught.value)

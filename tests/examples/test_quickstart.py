"""The quickstart's main path in miniature: every artefact, the table, the figure, and the proof of bit-identity."""

from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from cmkd import Student
from examples.digit_adaptation import Training
from examples.quickstart import METHODS, TABLE, Settings, _check_bit_identical, quickstart
from examples.quickstart_report import COLUMNS, Run, markdown
from examples.rendered_digits import render_digits
from examples.rendered_pretraining import RenderedPretraining
from examples.small_clip import pretrained_clip
from rst import SparseDelta
from tests.messages import names

MINIATURE = Settings(
    pretraining=RenderedPretraining(images=40, steps=2, batch=20),
    training=Training(iterations=3, batch=8),
    source_images=20,
    seeds=2,
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Run], Path, str]:
    """Runs, output folder and printed text of one miniature demonstration."""
    folder = tmp_path_factory.mktemp("quickstart")
    console = Console(record=True, width=160, force_terminal=False)
    runs = quickstart(MINIATURE, folder / "output", folder / "cache", console)
    return runs, folder / "output", console.export_text()


def test_the_table_has_a_row_for_every_method_and_seed(demo):
    runs, _, text = demo
    assert len(runs) == (1 + len(METHODS)) * MINIATURE.seeds
    for words in (*COLUMNS, "Zero-shot", *(method.name for method in METHODS)):
        assert words in text


def test_pages_show_the_table_that_was_recorded(demo):
    runs, _, _ = demo
    recorded, written = TABLE.read_text(encoding="utf-8"), markdown(runs)
    assert [line.split("|")[1] for line in recorded.splitlines()] == [
        line.split("|")[1] for line in written.splitlines()
    ]
    assert recorded.splitlines()[:2] == written.splitlines()[:2]
    root = TABLE.parents[1]
    assert recorded in (root / "examples" / "README.md").read_text(encoding="utf-8")
    for page in (root / "README.md", *(root / "docs").rglob("*.md"), root / "examples" / "README.md"):
        lines = page.read_text(encoding="utf-8").splitlines()
        rows = [line for line in lines if line.startswith("| CMKD + RST, ") and "kept" in line]
        assert {*rows} <= {*recorded.splitlines()}, page


def test_every_artefact_is_stored_and_weighed(demo):
    runs, output, _ = demo
    for run in runs[MINIATURE.seeds :]:
        assert run.artefact is not None
        assert run.artefact.parent == output
        assert run.stored_bytes == run.artefact.stat().st_size > 0
    assert runs[0].stored_bytes == 0
    assert (output / "quickstart.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_stored_is_what_changed(demo):
    runs, _, _ = demo
    for run in runs[MINIATURE.seeds :]:
        assert run.student is not None
        head = sum(weight.numel() for weight in run.student.head.parameters())
        if run.method.startswith("Linear probe"):
            assert run.dsp == head
        else:
            assert run.dsp > head
        if run.delta is not None:
            assert run.artefact is not None
            assert run.dsp == run.delta.dsp() == SparseDelta.load(run.artefact).dsp()


def test_merged_equals_tuned_and_says_so(demo):
    runs, output, text = demo
    merged = load_file(output / "merged.safetensors")
    shipped = [run for run in runs if run.delta is not None and run.artefact is not None and run.artefact.name in text]
    assert len(shipped) == 1
    assert shipped[0].student is not None
    state = shipped[0].student.state_dict()
    assert merged.keys() == state.keys()
    assert all(torch.equal(merged[name], state[name]) for name in state)
    assert "bit-identical" in text


def test_bit_identity_is_refused_for_one_bit(demo):
    runs, _, _ = demo
    assert runs[-1].student is not None
    tuned = runs[-1].student.state_dict()
    flipped = {name: tensor.clone() for name, tensor in tuned.items()}
    flipped["encoder.conv1.weight"].view(torch.int32).view(-1)[0] ^= 1
    with pytest.raises(RuntimeError, match=names(1, "encoder.conv1.weight")):
        _check_bit_identical(flipped, tuned)
    with pytest.raises(RuntimeError, match=names("head.linear.bias")):
        _check_bit_identical({name: tensor for name, tensor in tuned.items() if name != "head.linear.bias"}, tuned)


def test_pretraining_is_cached_and_a_new_setting_is_not(tmp_path):
    first = pretrained_clip(MINIATURE.pretraining, tmp_path)
    (cached,) = tmp_path.iterdir()
    written = cached.stat().st_mtime_ns
    second = pretrained_clip(MINIATURE.pretraining, tmp_path)
    assert cached.stat().st_mtime_ns == written
    _check_bit_identical(first.state_dict(), second.state_dict())
    pretrained_clip(RenderedPretraining(images=40, steps=1, batch=20), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_rendering_is_repeatable_and_balanced():
    first, second, other = render_digits(30, 0), render_digits(30, 0), render_digits(30, 1)
    assert torch.equal(first.images, second.images)
    assert first.captions == second.captions
    assert not torch.equal(first.images, other.images)
    assert first.labels.bincount().tolist() == [3] * 10
    assert all(f"number: {label}" in caption for label, caption in zip(first.labels, first.captions, strict=True))


def test_every_run_starts_from_the_same_encoder_and_moves_a_copy(demo):
    runs, output, _ = demo
    base = load_file(output / "base-seed0.safetensors")
    probe = next(run.student for run in runs if run.method.startswith("Linear probe"))
    assert isinstance(probe, Student)
    assert all(torch.equal(base[f"encoder.{name}"], tensor) for name, tensor in probe.encoder.state_dict().items())

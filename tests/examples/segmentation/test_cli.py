"""The command line: what it lists, counts and refuses."""

import pytest
from accelerate.utils import set_seed
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from examples.segmentation import building
from examples.segmentation.cli import app, main
from examples.segmentation.deeplab import DeepLabV2, DilatedHead
from examples.segmentation.tables import load_table

runner = CliRunner()


def test_list_and_parameters(tmp_path):
    result = runner.invoke(app, ["list", "--output", str(tmp_path)])
    assert result.exit_code == 0
    assert "RST-config2" in result.output
    assert "0 of 6" in result.output
    assert "43,200,614" in runner.invoke(app, ["parameters"]).output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reproduce", "gta"], "'gta'"),
        (["reproduce", "gta_cityscapes", "--row", "Lora"], "row must be one of Fine-Tuning"),
        (["reproduce", "gta_cityscapes"], "--data is missing: the folder that holds Cityscapes: Register"),
        (["check", "gta", "--data", "."], "'gta'"),
        (["check", "acdc", "--data", "."], "ACDC at acdc is not as expected"),
    ],
)
def test_misuse_is_named(refusal, tmp_path, arguments, message):
    output = ["--output", tmp_path] if arguments[0] == "reproduce" else []
    assert message in refusal(main, *arguments, *output)


def test_miniature_data_are_refused_before_training(refusal, scenes, tmp_path):
    said = refusal(main, "reproduce", "gta_cityscapes", "--data", scenes, "--output", tmp_path)
    assert "train: 10 images, expected 2975" in said
    assert not list(tmp_path.iterdir())


def test_a_report_without_results(tmp_path):
    result = runner.invoke(app, ["report", "cityscapes_acdc", "--output", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "| CMKD+RST | paper | 86.2 |" in result.output
    assert (tmp_path / "cityscapes_acdc" / "report.md").exists()


def test_base_is_what_a_cell_starts_from(tmp_path, monkeypatch):
    def tiny(classes, *, pretrained):
        assert pretrained
        return DeepLabV2(nn.Conv2d(3, 4, 1), DilatedHead(4, classes))

    monkeypatch.setattr(building, "build_deeplab", tiny)
    result = runner.invoke(app, ["base", "gta_cityscapes", "RST-config1", str(tmp_path / "base.safetensors")])
    assert result.exit_code == 0, result.output
    set_seed(42)
    wanted = building.build_student(load_table("gta_cityscapes").rows["RST-config1"]).state_dict()
    got = load_file(tmp_path / "base.safetensors")
    assert got.keys() == wanted.keys()
    assert all((got[name] == wanted[name]).all() for name in wanted)

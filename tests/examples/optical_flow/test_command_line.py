"""Settings, configurations, the report and the command line."""

import pytest
from typer.testing import CliRunner

from examples.experiment.settings import SettingsError
from examples.optical_flow.cli import app, main
from examples.optical_flow.kept_share import Geometric, kept_share
from examples.optical_flow.plots import draw_curves, draw_kept_share
from examples.optical_flow.report import collect, markdown
from examples.optical_flow.settings import Settings
from examples.optical_flow.tables import load_variant, variant_names
from tests.messages import names

runner = CliRunner()


@pytest.mark.parametrize(
    ("values", "facts"),
    [
        ({"method": "prefix"}, ("method", "fine_tuning", "'prefix'")),
        ({"method": "rst", "lr": "1e-4"}, ("lr", "float", "'1e-4'", "1.0e-4")),
        ({"method": "rst", "steps": 0}, ("steps", 1, 0)),
        ({"method": "rst", "crop_height": 100}, ("crop_height", 8, 100)),
        ({"method": "rst", "final_share": 0.0}, ("final_share", "(0, 1]", 0.0)),
        ({"method": "rst", "clip_norm": 0.0}, ("clip_norm", 0.0)),
        ({"method": "rst", "weight_decay": -1.0}, ("weight_decay", -1.0)),
        ({"method": "rst", "weights": 3}, ("weights", 3)),
        ({"method": "rst", "stpes": 3}, ("'stpes'",)),
        ({"steps": 3}, ("'method'",)),
    ],
)
def test_wrong_settings_name_the_key(values, facts):
    with pytest.raises(SettingsError, match=names(*facts)):
        Settings.from_dict(values)


def test_settings_survive_json_and_any_change_shows():
    settings = Settings(method="rst")
    assert Settings.from_dict(settings.to_dict()) == settings
    assert Settings(method="rst", gamma=0.8).fingerprint() != settings.fingerprint()


def test_the_kept_share_falls_from_all_to_two_thousandths():
    for curve, middle in (("linear", 0.501), ("geometric", 0.002**0.5)):
        share = kept_share(Settings(method="rst", curve=curve))
        assert (share(0.0), share(1.0)) == (1.0, 0.002)
        assert share(0.5) == pytest.approx(middle)
    assert Geometric(1.0, 0.25)(0.5) == 0.5


def test_every_variant_has_the_papers_rows():
    assert variant_names() == ["generated", "held_out", "kitti2015"]
    for name in variant_names():
        methods = [row.method for row in load_variant(name).rows.values()]
        assert methods == ["fine_tuning", "linear_probe", "bitfit", "lora", "rst", "rst", "rst_bias"]
    held_out = load_variant("held_out").rows["RST"]
    assert (held_out.weights, held_out.pairs) == ("C_T_V2", "held_out")  # SKHT weights have seen KITTI's pairs


def test_the_report_gives_the_papers_figures_before_anything_is_run(tmp_path):
    variant = load_variant("kitti2015")
    rows = collect(variant, tmp_path)
    page = markdown(variant, rows, tmp_path)
    assert "| Fine-Tuning | 0.67 | - | - | - | - | - | - |" in page
    assert "| Fine-Tuning | 4.1878 | 4.1878 | 5.2575 | - | - | - |" in page
    assert "| Linear-Probe | 3.1210 | 3.1210 | 3.1210 |" in page
    assert "| BitFit | 0.0043 | 0.0043 | 0.0075 |" in page
    assert "| LoRA | 0.0163 | 0.0371 | 0.0490 |" in page
    assert "0 of 7 cells are done." in page
    draw_kept_share(rows, tmp_path / "kept_share.png")
    draw_curves(variant.title, rows, tmp_path / "curves.png")
    assert (tmp_path / "kept_share.png").stat().st_size > 5_000


def test_the_report_compares_with_the_paper(tmp_path):
    variant = load_variant("kitti2015")
    rows = collect(variant, tmp_path)
    point = {"step": 1, "epe": 1.0, "epe_per_image": 1.5, "fl_all": 7.0, "loss": 2.0, "kept": 0.002}
    result = {"start": {**point, "epe": 2.0}, "last": point, "hours": 3.0, "dsp": 10515, "dsp_like_paper": 9000}
    result |= {"bytes": 1234567, "curve": [{**point, "step": 0}, point]}
    rows[4] = type(rows[4])("RST", rows[4].settings, result, [tmp_path / "rst" / "a.png"])
    page = markdown(variant, rows, tmp_path)
    assert "| RST | 0.96 | 2.00 | 1.00 | +0.04 | 1.50 | 7.00 | 3.00 |" in page
    assert "| RST | 0.0181 | - | 0.0105 | 0.0090 | 0.0105 | 1,234,567 |" in page
    assert "![pair](rst/a.png)" in page
    draw_kept_share(rows, tmp_path / "kept_share.png")
    draw_curves(variant.title, rows, tmp_path / "curves.png")


def test_the_command_line_lists_checks_and_says_what_is_missing(refusal, tmp_path):
    out = ("--output", str(tmp_path))
    assert "0 of 7" in runner.invoke(app, ["list", *out]).output
    assert "data_scene_flow.zip" in refusal(main, "check", "--data", tmp_path)
    assert "--data is missing" in refusal(main, "reproduce", "kitti2015", *out)
    assert "leave --data out" in refusal(main, "reproduce", "generated", "--data", tmp_path, *out)
    assert "generated, held_out, kitti2015" in refusal(main, "reproduce", "sintel")
    said = refusal(main, "reproduce", "kitti2015", "--method", "adapter", *out)
    assert "bitfit, fine_tuning, linear_probe, lora, rst, rst_bias" in said
    report = runner.invoke(app, ["report", "kitti2015", *out])
    assert report.exit_code == 0, report.output
    assert (tmp_path / "appendix10" / "kitti2015" / "report.md").read_text() in report.output

"""A configuration that cannot run is refused with the name of the file and the key."""

import pytest

from examples.experiment.settings import SettingsError
from examples.uda.settings import Settings
from examples.uda.tables import load_variant
from tests.messages import names

GOOD = {
    "benchmark": "office31",
    "method": "cmkd",
    "backbone": "RN50",
    "iterations": 10,
    "encoder_lr": 0.1,
    "head_lr": 1,
    "evaluate_every": 5,
}


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"iteration": 10}, ("'iteration'",)),
        ({"iterations": "10"}, ("iterations", "int", "'10'")),
        ({"iterations": True}, ("iterations", "int", True)),
        ({"iterations": 0}, ("iterations", 1, 0)),
        ({"encoder_lr": "3e-6"}, ("encoder_lr", "3.0e-6")),
        ({"threshold": -1.0}, ("threshold", -1.0)),
        ({"preset": "offical"}, ("preset", "paper", "official", "corrected", "'offical'")),
        ({"preset_changes": {"beta": 1}}, ("preset_changes", "'beta'")),
        ({"prompt": 3}, ("prompt", 3)),
        ({"terms": "task"}, ("terms", "'task'")),
        ({"terms": ["tsk"]}, ("terms", "'tsk'")),
    ],
)
def test_wrong_values_are_named(change, facts):
    with pytest.raises(SettingsError, match=names(*facts)):
        Settings.from_dict({**GOOD, **change})


def test_a_missing_key_is_named():
    with pytest.raises(SettingsError, match="encoder_lr"):
        Settings.from_dict({key: value for key, value in GOOD.items() if key != "encoder_lr"})


def test_every_setting_changes_the_fingerprint_and_survives_json():
    settings = Settings.from_dict(GOOD)
    assert Settings.from_dict(settings.to_dict()) == settings
    assert Settings.from_dict({**GOOD, "terms": ["task"]}).fingerprint() != settings.fingerprint()
    assert Settings.from_dict({**GOOD, "options": {"weight": 1}}).fingerprint() != settings.fingerprint()


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("titel: x\ncommon: {}\nrows: {}", ("'titel'",)),
        ("title: x\nrows: {}", ("'common'",)),
        (f"title: x\ncommon: {GOOD | {'benchmark': 'office32'}}\nrows: {{CMKD: {{}}}}", ("'office32'",)),
        (f"title: x\ncommon: {GOOD | {'method': 'cmdk'}}\nrows: {{CMKD: {{}}}}", ("'cmdk'",)),
        ("title: x\ncommon: {benchmark: office31}\nrows: {CMKD: {methd: cmkd}}", ("'methd'",)),
    ],
)
def test_a_file_s_mistake_is_told_with_its_path(tmp_path, text, facts):
    path = tmp_path / "RN50.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=names(path, *facts)):
        load_variant(path)

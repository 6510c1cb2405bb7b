"""The presets say what the fidelity table says, and cannot be altered by accident."""

import dataclasses

import pytest

from cmkd import PRESETS


def test_the_fidelity_table():
    assert {name: dataclasses.astuple(preset) for name, preset in PRESETS.items()} == {
        "paper": ("mean", "kl_student_teacher", 0.0, False),
        "official": ("balanced", "kl_teacher_student", 1e-5, True),
        "corrected": ("balanced", "kl_student_teacher", 0.0, True),
    }


def test_a_preset_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PRESETS["paper"].gini = "balanced"

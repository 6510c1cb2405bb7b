"""The presets say what the fidelity table says, and cannot be altered by accident."""

import dataclasses

import pytest

from cmkd import PRESETS

CODE = {
    "head_linear_bias": False,
    "head_layer_norm_eps": 1e-6,
    "batchnorm_affine_frozen": False,
    "prompt": "a photo of a {}",
    "prompt_office_home": "an image of a {}",
    "prompt_digits": 'a photo of the number: "{}"',
    "nesterov": True,
    "lr_decay": True,
    "strong_resize": 256,
    "view_geometry": "squash",
    "strong_fill": "mean",
    "partial_refresh_every": 500,
}


def test_the_fidelity_table():
    assert {name: dataclasses.asdict(preset) for name, preset in PRESETS.items()} == {
        "paper": {
            "gini": "mean",
            "alpha": "kl_student_teacher",
            "entropy_epsilon": 0.0,
            "ramp_clip": False,
            "distill": "mixed",
            "head_linear_bias": True,
            "head_layer_norm_eps": 1e-5,
            "batchnorm_affine_frozen": True,
            "prompt": "a photo of a {}",
            "prompt_office_home": "a photo of a {}",
            "prompt_digits": "a photo of the number: {}",
            "domainnet_class_order": "folder",
            "nesterov": False,
            "lr_decay": False,
            "strong_resize": 224,
            "view_geometry": "crop",
            "strong_fill": "grey",
            "imagenet_normalisation": "imagenet",
            "prototype_logit_factor": 1.0,
            "partial_refresh_every": 500,
        },
        "official": CODE
        | {
            "gini": "balanced",
            "alpha": "kl_teacher_student",
            "entropy_epsilon": 1e-5,
            "ramp_clip": True,
            "distill": "mixed",
            "domainnet_class_order": "lowercase",
            "imagenet_normalisation": "imagenet",
            "prototype_logit_factor": pytest.approx(0.8840456),
        },
        "corrected": CODE
        | {
            "gini": "balanced",
            "alpha": "kl_student_teacher",
            "entropy_epsilon": 0.0,
            "ramp_clip": True,
            "distill": "mixed",
            "domainnet_class_order": "folder",
            "imagenet_normalisation": "weights",
            "prototype_logit_factor": 1.0,
        },
    }


def test_a_preset_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PRESETS["paper"].gini = "balanced"

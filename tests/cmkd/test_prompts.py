"""Prompts as the paper and the released code word them, and DomainNet's slip."""

import pytest

from cmkd import PRESETS, build_prompts, prompt_order
from cmkd.prompts import ENSEMBLE, PHOTO_WITHOUT_ARTICLE
from tests.messages import names


def test_names_are_filled_in_with_spaces():
    assert build_prompts(["Alarm_Clock", "TV"]) == [["a photo of a Alarm Clock"], ["a photo of a TV"]]
    assert build_prompts(["Alarm_Clock"], PHOTO_WITHOUT_ARTICLE) == [["a photo of Alarm Clock"]]


def test_the_presets_wordings():
    paper, official = PRESETS["paper"], PRESETS["official"]
    assert build_prompts(["7"], paper.prompt_digits) == [["a photo of the number: 7"]]
    assert build_prompts(["7"], official.prompt_digits) == [['a photo of the number: "7"']]
    assert build_prompts(["bed"], official.prompt_office_home) == [["an image of a bed"]]


def test_an_ensemble_gives_each_class_every_template():
    prompts = build_prompts(["dog", "cat"], ENSEMBLE)
    assert [len(texts) for texts in prompts] == [7, 7]
    assert prompts[1][0] == "itap of a cat."
    assert all("dog" in text for text in prompts[0])


def test_braces_in_a_name_are_left_alone():
    assert build_prompts(["{0}"]) == [["a photo of a {0}"]]


def test_domainnet_s_slip_on_a_small_scale():
    folders = ["The_Eiffel_Tower", "ant", "tent", "tiger", "zebra"]
    assert prompt_order(folders, "folder") == folders
    official = prompt_order(folders, "lowercase")
    assert official == ["ant", "tent", "The_Eiffel_Tower", "tiger", "zebra"]
    assert [a == b for a, b in zip(official, folders, strict=True)] == [False, False, False, True, True]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=names("{}", "'a photo'")):
        build_prompts(["dog"], ["a {}", "a photo"])
    with pytest.raises(ValueError, match=names(0, 1)):
        build_prompts([])
    with pytest.raises(ValueError, match=names("class_names", "'_'")):
        build_prompts(["dog", "_"])

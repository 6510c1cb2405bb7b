"""What a base's files lack is said before a training, where no delta will hold it; what they have is not."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import transformers as hf
from transformers import PreTrainedModel

from rst import ResidualSparseTrainer, RSTConfig, RSTModel, export, get_rst_model, merge
from rst.config import Patterns
from rst.errors import RSTWarning
from tests.rst.checkpoints import tiny_models
from tests.rst.checkpoints.tiny_models import RENAMING, same_weights

SIZES: dict[str, Any] = {"vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def bert() -> PreTrainedModel:
    return hf.BertModel(hf.BertConfig(**SIZES, intermediate_size=24))


def marian() -> PreTrainedModel:
    sizes: dict[str, Any] = {
        f"{part}_{what}": 1 for part in ("encoder", "decoder") for what in ("layers", "attention_heads")
    }
    ends: dict[str, Any] = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    return hf.MarianMTModel(hf.MarianConfig(vocab_size=64, d_model=16, **sizes, **ends))


@pytest.fixture
def headless(tmp_path: Path) -> Path:
    bert().save_pretrained(tmp_path / "headless")
    return tmp_path / "headless"


def headed(folder: Path) -> PreTrainedModel:
    return hf.BertForSequenceClassification.from_pretrained(folder)


def said(model: PreTrainedModel, *, save: list[str] | None = None, targets: Patterns = None) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ResidualSparseTrainer(model, RSTConfig(ratio=0.02, target_modules=targets, modules_to_save=save))
    assert all(warning.filename == __file__ for warning in caught)
    return [str(warning.message) for warning in caught if warning.category is RSTWarning]


@pytest.mark.parametrize("targets", [None, ["query", "value"]], ids=["trained", "frozen"])
def test_a_fresh_head_is_named_with_what_to_change(headless: Path, targets: Patterns) -> None:
    (text,) = said(headed(headless), targets=targets)
    assert "2 of 25 " in text
    assert "classifier.weight, classifier.bias." in text
    assert "modules_to_save=['classifier']" in text


def test_the_advice_silences_it_and_gives_the_model_back(headless: Path, tmp_path: Path) -> None:
    model = headed(headless)
    assert not said(model, save=["classifier"])
    trained = get_rst_model(model, RSTConfig(ratio=0.02, modules_to_save=["classifier"]))
    trained.save_pretrained(str(tmp_path / "adapter"))
    merge(headless, tmp_path / "adapter", tmp_path / "merged")
    assert same_weights(hf.BertForSequenceClassification.from_pretrained(tmp_path / "merged"), model)
    loaded = RSTModel.from_pretrained(headed(headless), str(tmp_path / "adapter"))
    assert same_weights(cast(PreTrainedModel, loaded.merge_and_unload()), model)


def test_an_adapter_of_the_live_model_is_told_of_too(headless: Path) -> None:
    with pytest.warns(RSTWarning, match=r"modules_to_save=\['classifier'\]"):
        get_rst_model(headed(headless), RSTConfig(ratio=0.02))


def test_an_export_against_a_module_says_it_too(headless: Path) -> None:
    base, tuned = headed(headless), headed(headless)
    with pytest.warns(RSTWarning, match=r"modules_to_save=\['classifier'\]"):
        export(base, tuned)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export(base, tuned, modules_to_save=["classifier"])
        export(headless, tuned)  # what the folder lacks is stored whole


@pytest.mark.parametrize("shard", ["5GB", "10KB"], ids=["single", "sharded"])
def test_a_resized_vocabulary_is_named_with_both_shapes(tmp_path: Path, shard: str) -> None:
    bert().save_pretrained(tmp_path, max_shard_size=shard)
    model = hf.BertModel.from_pretrained(tmp_path)
    model.resize_token_embeddings(110)
    (text,) = said(model)
    assert "1 of 23 " in text
    assert re.search(r"embeddings\.word_embeddings\.weight 110x16, .* 100x16\.", text)
    assert "modules_to_save=['word_embeddings']" in text
    assert not said(model, save=["word_embeddings"])


def test_a_long_list_is_counted(headless: Path) -> None:
    (text,) = said(hf.BertForMaskedLM.from_pretrained(headless))
    assert "5 of 26 " in text
    assert "2 more" in text
    assert "modules_to_save=['cls']" in text


MODELS = ("llama", "gpt2", "bert", "gpt_neox", "vit", "mixtral", "llava")


@pytest.mark.parametrize("build", [marian, *(getattr(tiny_models, name) for name in MODELS)])
def test_a_model_of_its_own_folder_is_quiet(build: Callable[[], PreTrainedModel], tmp_path: Path) -> None:
    """Renamed, moved, tied tensors; positions that no file has."""
    model = build()
    assert not said(model)
    model.save_pretrained(tmp_path)
    assert not said(type(model).from_pretrained(tmp_path))


def test_parts_and_tied_heads_of_a_folder_are_quiet(tmp_path: Path) -> None:
    marian().save_pretrained(tmp_path / "marian")
    assert not said(hf.MarianModel.from_pretrained(tmp_path / "marian"))
    gpt2 = tiny_models.gpt2()
    cast(PreTrainedModel, gpt2.base_model).save_pretrained(tmp_path / "gpt2")
    assert not said(type(gpt2).from_pretrained(tmp_path / "gpt2"))


@RENAMING
def test_a_part_whose_names_in_the_files_are_not_known_was_loaded_all_the_same(tmp_path: Path) -> None:
    whole = tiny_models.qwen2_vl()
    whole.save_pretrained(tmp_path)
    part = cast(PreTrainedModel, whole.model)
    assert not said(type(part).from_pretrained(tmp_path))


def test_files_of_another_model_are_not_the_base(headless: Path) -> None:
    model = tiny_models.llama()
    model.name_or_path = str(headless)
    assert not said(model)

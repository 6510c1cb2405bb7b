"""A merged folder is what `save_pretrained` of the tuned model would have written: `from_pretrained` takes it."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from rst import RSTConfig, RSTModel, SparseDelta, export, get_rst_model, merge

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

LABELS = {0: "cat", 1: "dog", 2: "owl"}
SIZES = {
    "vocab_size": 40,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 16,
}
INPUTS = torch.arange(6)[None]


@pytest.fixture(params=["headed", "headless"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    kind = {"headed": "BertForSequenceClassification", "headless": "BertModel"}[request.param]
    getattr(transformers, kind)(transformers.BertConfig(**SIZES)).save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "vocab.txt").write_text("a\n")
    return tmp_path / "base"


def tuned_model(base: Path) -> nn.Module:
    options = {"num_labels": 3, "id2label": LABELS, "label2id": {name: number for number, name in LABELS.items()}}
    kind = transformers.BertForSequenceClassification
    model: nn.Module = kind.from_pretrained(base, ignore_mismatched_sizes=True, **options)
    return model


def change(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.view(-1)[:2] += 0.25


def delta_by(route: str, base: Path) -> tuple[SparseDelta | Path, nn.Module]:
    """A delta, or the adapter folder with it, and the tuned model."""
    model, folder = tuned_model(base), base.parent / "tuned"
    if route == "trained":
        wrapped: RSTModel = get_rst_model(model, RSTConfig(threshold=1e-6, modules_to_save=["classifier"]))
        change(wrapped.base_model)
        wrapped.save_pretrained(folder)
        return folder, wrapped.base_model
    change(model)
    model.save_pretrained(folder)
    tuned = folder if route == "folders" else model
    return export(base, tuned, modules_to_save=["classifier"]), model


@pytest.mark.parametrize("route", ["folders", "module", "trained"])
def test_labels_and_class_follow_the_tuned_model(base: Path, route: str) -> None:
    delta, tuned = delta_by(route, base)
    merge(base, delta, base.parent / "merged")
    merged = transformers.AutoModelForSequenceClassification.from_pretrained(base.parent / "merged")
    assert merged.config.id2label == LABELS
    assert merged.config.label2id == {name: number for number, name in LABELS.items()}
    assert merged.config.architectures == ["BertForSequenceClassification"]
    assert torch.equal(merged.eval()(INPUTS).logits, tuned.eval()(INPUTS).logits)
    assert (base.parent / "merged" / "vocab.txt").exists()


def test_dtype_is_the_bases_and_a_head_that_stays_out_has_the_bases_labels(base: Path) -> None:
    tuned = tuned_model(base)
    settings = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(
        json.dumps({**settings, "dtype": "float16", "text_config": {"dtype": "bfloat16"}})
    )
    delta = export(base, tuned, modules_to_save=["classifier"])
    merge(base, delta, base.parent / "merged")
    found = json.loads((base.parent / "merged" / "config.json").read_text())
    assert (found["dtype"], found["id2label"]) == ("float16", {"0": "cat", "1": "dog", "2": "owl"})
    without = export(base, tuned, exclude_modules=["classifier"])
    assert without.model_config is None
    assert delta.sparse_only().model_config is None


def test_settings_pass_through_a_file_with_infinities(tmp_path: Path) -> None:
    delta = export({"w": torch.zeros(3)}, {"w": torch.ones(3)})
    known = SparseDelta(delta.parameters, model_config={"limit": [0.0, float("inf")], "model_type": "mamba2"})
    for encoding in ("coo", "packed"):
        known.save(tmp_path / "d.safetensors", encoding)  # type: ignore[arg-type]
        assert SparseDelta.load(tmp_path / "d.safetensors").model_config == known.model_config
    assert known.digest() != delta.digest()

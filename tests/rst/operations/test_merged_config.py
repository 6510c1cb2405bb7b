"""The settings of a merged folder follow the tuned tensors, or a warning says that they do not."""

import json
import warnings

import pytest
import torch
from safetensors.torch import save_file

from rst import RSTWarning, export, merge


def merged_settings(tmp_path, before, after):
    for name, rows in {"base": before, "tuned": after}.items():
        (tmp_path / name).mkdir()
        save_file({"emb.weight": torch.ones(rows, 2)}, tmp_path / name / "model.safetensors")
    (tmp_path / "base" / "config.json").write_text(json.dumps({"model_type": "x", "text": {"vocab_size": 6}}))
    delta = export(tmp_path / "base", tmp_path / "tuned", modules_to_save=["emb"])
    merge(tmp_path / "base", delta, tmp_path / "merged")
    return json.loads((tmp_path / "merged" / "config.json").read_text())


def test_the_vocabulary_is_as_large_as_the_tuned_embeddings(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert merged_settings(tmp_path, 6, 8) == {"model_type": "x", "text": {"vocab_size": 8}}


def test_a_size_that_no_setting_is_known_for_is_said(tmp_path):
    with pytest.warns(RSTWarning) as caught:
        assert merged_settings(tmp_path, 3, 5)["text"]["vocab_size"] == 6
    assert "emb.weight" in str(caught[0].message)
    assert "(5, 2)" in str(caught[0].message)

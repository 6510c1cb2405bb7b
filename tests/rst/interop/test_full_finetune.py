"""A fully fine-tuned model folder against its base folder: shards cut elsewhere, tied weights, heads that are new."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rst import export, merge
from rst.cli import main
from rst.interop.model_folder import load_model
from rst.numerics.exactness import bit_equal
from tests.rst.interop.conftest import save, tiny_bert, tiny_llama


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sharded_folders_of_transformers(tmp_path: Path, tied: bool, dtype: torch.dtype) -> None:
    base = save(tiny_llama(tied, dtype), tmp_path / "base", shard="5KB")
    tuned_model = tiny_llama(tied, dtype)
    with torch.no_grad():
        for parameter in tuned_model.parameters():
            parameter.view(-1)[::3] *= 1.01
    tuned = save(tuned_model, tmp_path / "tuned", shard="9KB")
    assert len(list(base.glob("*.safetensors"))) != len(list(tuned.glob("*.safetensors"))) > 1
    words = ["export", str(tuned), "--base", str(base), "-o", str(tmp_path / "delta.safetensors")]
    assert main(words) == 0
    assert main(["merge", str(base), str(tmp_path / "delta.safetensors"), "-o", str(tmp_path / "m.safetensors")]) == 0
    merged = load_file(tmp_path / "m.safetensors")
    wanted = {name: tensor for file in tuned.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert merged.keys() == wanted.keys()
    assert all(bit_equal(merged[name], tensor) for name, tensor in wanted.items())
    assert ("lm_head.weight" in merged) is not tied

    model = load_model(base)
    export(base, tuned).apply(model)
    assert all(bit_equal(left, right) for left, right in zip(model.parameters(), tuned_model.parameters(), strict=True))


def test_a_new_head_is_stored_whole(tmp_path: Path) -> None:
    tuned = save(tiny_bert(), tmp_path / "tuned")
    base = save(tiny_bert(), tmp_path / "base")
    state = load_file(base / "model.safetensors")
    headless = {name: tensor for name, tensor in state.items() if not name.startswith("classifier")}
    save_file(headless, base / "model.safetensors", metadata={"format": "pt"})
    delta = export(base, tuned)
    assert (delta.nnz, sorted(delta.dense)) == (0, ["classifier.bias", "classifier.weight"])
    assert merge(headless, delta).keys() == state.keys()

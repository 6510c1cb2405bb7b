"""Adapters of PEFT become deltas that give its own merged weights, bit for bit."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftConfig, PeftModel, PromptTuningConfig, ShiraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rst import CheckpointError, NonFiniteError, ParameterMismatchError, SparseDelta, from_peft, merge, to_shira
from rst.checkpoints.checkpoint import open_checkpoint
from rst.numerics.exactness import bit_equal
from tests.refusal import refused
from tests.rst.interop.conftest import RENAMED, save, tiny_bert, tiny_llama

pytestmark = [
    pytest.mark.filterwarnings(RENAMED),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers. to .True.:UserWarning"),
]

TARGETS = ["q_proj", "v_proj", "down_proj"]
CONFIGS: dict[str, Callable[[], PeftConfig]] = {
    "lora": lambda: LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=False),
    "dora": lambda: LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=False, use_dora=True),
    "lora of an embedding": lambda: LoraConfig(r=2, target_modules=["embed_tokens"], init_lora_weights=False),
    "ia3": lambda: IA3Config(target_modules=TARGETS, feedforward_modules=["down_proj"], init_ia3_weights=False),
    "shira": lambda: ShiraConfig(r=1, target_modules=TARGETS, init_weights=False, random_seed=0),
}


def train_by_chance(model: nn.Module) -> None:
    """Give every adapter weight, and whatever else is trained, a random value."""
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape, generator=draw).to(parameter.dtype) * 0.1


def save_adapter(model: nn.Module, config: PeftConfig, folder: Path) -> Path:
    adapted = get_peft_model(model, config)
    train_by_chance(adapted)
    adapted.save_pretrained(folder)
    return folder


def merged_by_peft(model: nn.Module, adapter: Path) -> dict[str, Tensor]:
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return dict(merged.state_dict())


def differing(left: dict[str, Tensor], right: dict[str, Tensor]) -> list[str]:
    return [name for name in left.keys() | right.keys() if not bit_equal(left[name], right[name])]


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_delta_gives_the_weights_that_peft_merges(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    base = save(tiny_llama(dtype=dtype), tmp_path / "base")
    adapter = save_adapter(tiny_llama(dtype=dtype), CONFIGS[kind](), tmp_path / "adapter")
    delta = from_peft(adapter, base)
    wanted = merged_by_peft(tiny_llama(dtype=dtype), adapter)
    assert differing(merge(dict(open_checkpoint(base)), delta), wanted) == []
    assert delta.nnz > 0
    assert (delta.base.name, delta.dense) == ("model.safetensors", {})
    assert delta.config == {"converted_from": {"peft_type": "LORA" if "ora" in kind else kind.upper()}}


def test_a_loaded_model_serves_as_well_and_stays_as_it_is(tmp_path: Path) -> None:
    base = save(tiny_llama(), tmp_path / "base")
    adapter = save_adapter(tiny_llama(), CONFIGS["lora"](), tmp_path / "adapter")
    model = tiny_llama()
    delta = from_peft(adapter, model)
    assert dict(delta.parameters) == dict(from_peft(adapter, base).parameters)
    assert differing(dict(model.state_dict()), dict(tiny_llama().state_dict())) == []
    delta.apply(model)
    assert differing(dict(model.state_dict()), merged_by_peft(tiny_llama(), adapter)) == []


def test_modules_to_save_are_stored_whole_and_trained_biases_are_carried(tmp_path: Path) -> None:
    base = save(tiny_bert(), tmp_path / "base")
    config = LoraConfig(
        r=2, target_modules=["query"], modules_to_save=["classifier"], bias="all", init_lora_weights=False
    )
    adapter = save_adapter(tiny_bert(), config, tmp_path / "adapter")
    delta = from_peft(adapter, base)
    assert delta.dense.keys() == {"classifier.weight", "classifier.bias"}
    assert "bert.encoder.layer.0.intermediate.dense.bias" in delta
    wanted = merged_by_peft(tiny_bert(), adapter)
    assert differing(merge(dict(open_checkpoint(base)), delta), wanted) == []


def test_convolutions_of_any_module(tmp_path: Path) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))

    config = LoraConfig(r=2, target_modules=["0"], modules_to_save=["3"], init_lora_weights=False)
    adapter = save_adapter(build(), config, tmp_path / "adapter")
    delta = from_peft(adapter, build())
    assert (list(delta), sorted(delta.dense)) == (["0.weight"], ["3.bias", "3.weight"])
    assert differing(merge(dict(build().state_dict()), delta), merged_by_peft(build(), adapter)) == []


def test_sharded_folders_and_tied_heads(tmp_path: Path) -> None:
    base = save(tiny_llama(tied=True), tmp_path / "base", shard="5KB")
    assert len(list(base.glob("*.safetensors"))) > 1
    adapter = save_adapter(tiny_llama(tied=True), CONFIGS["lora"](), tmp_path / "adapter")
    delta = from_peft(adapter, base)
    assert delta.dense == {}
    wanted = merged_by_peft(tiny_llama(tied=True), adapter)
    merged = merge(dict(open_checkpoint(base)), delta)
    assert differing(merged, {name: tensor for name, tensor in wanted.items() if name != "lm_head.weight"}) == []


@pytest.mark.filterwarnings("ignore:Model (has|with) .tie_word_embeddings=True.:UserWarning")
def test_a_tied_embedding_in_front_of_its_head(tmp_path: Path) -> None:
    base = save(tiny_llama(tied=True), tmp_path / "base")
    adapter = save_adapter(tiny_llama(tied=True), CONFIGS["lora of an embedding"](), tmp_path / "adapter")
    delta = from_peft(adapter, base)
    assert list(delta) == ["model.embed_tokens.weight"]
    assert delta.tied == {"lm_head.weight": "model.embed_tokens.weight"}
    assert delta.dense == {}


def test_a_head_that_the_base_lacks_is_carried_only_if_the_adapter_has_it(tmp_path: Path) -> None:
    base = save(tiny_bert(), tmp_path / "base")
    state = load_file(base / "model.safetensors")
    headless = {name: tensor for name, tensor in state.items() if not name.startswith("classifier")}
    save_file(headless, base / "model.safetensors", metadata={"format": "pt"})
    query = LoraConfig(r=2, target_modules=["query"], init_lora_weights=False)
    assert from_peft(save_adapter(tiny_bert(), query, tmp_path / "plain"), base).dense == {}
    query.modules_to_save = ["classifier"]
    assert sorted(from_peft(save_adapter(tiny_bert(), query, tmp_path / "headed"), base).dense) == [
        "classifier.bias",
        "classifier.weight",
    ]


def test_a_threshold_makes_it_sparse(tmp_path: Path) -> None:
    base = save(tiny_llama(), tmp_path / "base")
    adapter = save_adapter(tiny_llama(), CONFIGS["lora"](), tmp_path / "adapter")
    whole, sparse = from_peft(adapter, base), from_peft(adapter, base, threshold=0.1)
    assert 0 < sparse.nnz < whole.nnz
    for name, change in whole.items():
        kept = int((change.to_coo().to_dense().abs() > 0.1).sum())
        assert (sparse[name].nnz if name in sparse else 0) == kept


def test_adapters_of_another_base_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    base = save(tiny_llama(), tmp_path / "base")
    adapter = save_adapter(tiny_llama(), CONFIGS["lora"](), tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    weights = load_file(file)
    first = min(weights)
    with refused(CheckpointError, "PEFT", file="adapter"):
        from_peft(adapter, tiny_bert())
    save_file({**weights, first.replace("layers.0", "layers.7"): weights[first].clone()}, file)
    with refused(
        ParameterMismatchError, "model.layers.7.mlp.down_proj.lora_A.weight", "LlamaForCausalLM", file="adapter"
    ):
        from_peft(adapter, base)
    save_file({name: tensor for name, tensor in weights.items() if name != first}, file)
    with (
        pytest.warns(UserWarning, match="missing adapter keys"),
        refused(ParameterMismatchError, "model.layers.0.mlp.down_proj.lora_A.weight", file="adapter"),
    ):
        from_peft(adapter, base)
    file.write_bytes(b"nothing")
    with refused(CheckpointError, "PEFT", file="adapter"):
        from_peft(adapter, base)
    shutil.rmtree(adapter)
    with refused(CheckpointError, "PEFT", file="adapter"):
        from_peft(adapter, base)


def test_prompts_change_no_weights(tmp_path: Path, llama: Path) -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(tiny_llama(), config).save_pretrained(tmp_path / "prompt")
    with refused(CheckpointError, "PROMPT_TUNING", file="prompt"):
        from_peft(tmp_path / "prompt", llama)


def test_positions_outside_the_weight_are_refused(tmp_path: Path, llama: Path) -> None:
    adapter = save_adapter(tiny_llama(), CONFIGS["shira"](), tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    weights = load_file(file)
    next(tensor for name, tensor in weights.items() if name.endswith("indices"))[0, 0] = 10_000
    save_file(weights, file)
    with refused(CheckpointError, "PEFT", file="adapter"):
        from_peft(adapter, llama)


def test_the_delta_is_a_file_like_any_other(tmp_path: Path, llama: Path) -> None:
    adapter = save_adapter(tiny_llama(), CONFIGS["lora"](), tmp_path / "adapter")
    delta = from_peft(adapter, llama, threshold=0.05)
    delta.save(tmp_path / "delta.safetensors", encoding="packed")
    assert SparseDelta.load(tmp_path / "delta.safetensors") == delta


def test_an_adapter_with_nan_and_one_without_settings_are_refused(tmp_path: Path, llama: Path) -> None:
    adapter = save_adapter(tiny_llama(), CONFIGS["lora"](), tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    weights = load_file(file)
    first = min(weights)
    save_file({**weights, first: weights[first] * float("nan")}, file)
    with refused(NonFiniteError, "384 of 384", file="adapter", parameter="model.layers.0.mlp.down_proj.weight"):
        from_peft(adapter, llama)
    (adapter / "adapter_config.json").write_text('{"peft_type": ')
    with refused(CheckpointError, file="adapter_config.json"):
        from_peft(adapter, llama)


def test_without_peft_the_command_that_installs_it_is_named(
    tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = save_adapter(tiny_llama(), CONFIGS["lora"](), tmp_path / "adapter")
    delta = from_peft(adapter, llama)
    monkeypatch.setitem(sys.modules, "peft", None)
    with refused(CheckpointError, '"residual-sparse-training[peft]"', file="adapter"):
        from_peft(adapter, llama)
    with refused(CheckpointError, '"residual-sparse-training[peft]"', file="shira"):
        to_shira(delta, tmp_path / "shira", llama, partial=True)
    assert not (tmp_path / "shira").exists()

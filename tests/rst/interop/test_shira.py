"""A delta as a SHiRA adapter loads with PEFT alone, gives the same outputs, and comes back bit for bit."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from rst import (
    CheckpointError,
    NotCarriedError,
    ParameterMismatchError,
    SparseDelta,
    WrongBaseError,
    export,
    from_peft,
    merge,
    to_shira,
)
from rst.checkpoints.checkpoint import open_checkpoint
from rst.interop.model_folder import load_model
from rst.interop.shira_rank import Layer, choose_rank
from rst.numerics.exactness import bit_equal
from tests.refusal import refused
from tests.rst.interop.conftest import RENAMED, save, tiny_bert, tiny_llama

DTYPES = (torch.float32, torch.bfloat16)
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings(RENAMED)]

LOAD_WITH_PEFT_ALONE = """
import sys
sys.modules["rst"] = None  # importing it is an error now
import torch, transformers
from peft import PeftModel
for name in sys.argv[1:]:
    base = transformers.AutoModelForCausalLM.from_pretrained(name + ".base", torch_dtype="auto")
    model = PeftModel.from_pretrained(base, name + ".shira").eval()
    logits = model(torch.arange(12).view(2, 6)).logits.detach()
    torch.save({"logits": logits, "merged": dict(model.merge_and_unload().state_dict())}, name + ".found.pt")
assert sys.modules["rst"] is None
"""


def change_weights(state: dict[str, Tensor], names: list[str], share: float, exact: bool = True) -> dict[str, Tensor]:
    """Move a share of some tensors; by a factor of less than two, so that plain addition is exact."""
    draw = torch.Generator().manual_seed(3)
    tuned = {name: tensor.clone() for name, tensor in state.items()}
    for number, name in enumerate(names):
        moved = torch.rand(tuned[name].shape, generator=draw) < share * (number + 1) / len(names)
        tuned[name][moved] *= 1.25 if exact else -1.0
    return tuned


def linears(state: dict[str, Tensor]) -> list[str]:
    return [name for name in state if name.endswith("proj.weight") or name == "lm_head.weight"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bases in two dtypes, deltas and SHiRA folders, and what a process without this library makes of them."""
    folder = tmp_path_factory.mktemp("alone")
    for dtype in DTYPES:
        model = tiny_llama(dtype=dtype)
        state = model.state_dict()
        state["model.layers.0.self_attn.q_proj.weight"].view(-1)[::7] = -0.0
        base = save(model, folder / f"{dtype}.base")
        delta = export(base, change_weights(state, linears(state)[:-1], share=0.3))
        delta.save(folder / f"{dtype}.safetensors")
        assert to_shira(delta, folder / f"{dtype}.shira", base) == {}
    words = [sys.executable, "-c", LOAD_WITH_PEFT_ALONE, *(folder / str(dtype) for dtype in DTYPES)]
    subprocess.run(words, check=True, capture_output=True, text=True, timeout=300, cwd=folder)
    return folder


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_peft_alone_loads_the_folder_and_gives_the_same_outputs(alone: Path, dtype: torch.dtype) -> None:
    base, delta = alone / f"{dtype}.base", SparseDelta.load(alone / f"{dtype}.safetensors")
    assert len({change.nnz for change in delta.values()}) > 3  # layers of different counts
    found = torch.load(alone / f"{dtype}.found.pt", weights_only=True)
    tuned = merge(dict(open_checkpoint(base)), delta)
    model = load_model(base)
    model.load_state_dict(tuned)
    with torch.no_grad():
        wanted = model(torch.arange(12).view(2, 6)).logits
    assert torch.equal(found["logits"], wanted)
    assert [name for name, tensor in tuned.items() if not bit_equal(found["merged"][name], tensor)] == []
    assert from_peft(alone / f"{dtype}.shira", base) == delta


def test_a_head_stored_whole_becomes_a_module_to_save(tmp_path: Path) -> None:
    model = tiny_bert()
    base = save(model, tmp_path / "base")
    state = dict(model.state_dict())
    tuned = change_weights(state, ["bert.encoder.layer.0.attention.self.query.weight"], share=0.1)
    tuned["classifier.weight"] = tuned["classifier.weight"] + 1
    delta = export(base, tuned, modules_to_save=["classifier"])
    assert to_shira(delta, tmp_path / "shira", base) == {}
    config = json.loads((tmp_path / "shira" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["modules_to_save"], config["r"]) == ("SHIRA", ["classifier"], 2)
    assert (config["base_model_name_or_path"], config["inference_mode"]) == (str(base), True)
    with safe_open(tmp_path / "shira" / "adapter_model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        (name,) = (name for name in file.keys() if name.endswith("shira_indices"))  # noqa: SIM118
        places = file.get_tensor(name)
    assert places.unique(dim=1).shape == places.shape == (2, 2 * (16 + 16))
    assert from_peft(tmp_path / "shira", base) == delta


def test_names_that_end_alike_are_told_apart(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.deep = nn.Linear(8, 8), nn.ModuleDict({"fc": nn.Linear(8, 8)})

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.deep["fc"](self.fc(x))
            return result

    model = Twice()
    tuned = change_weights(dict(model.state_dict()), ["fc.weight"], share=0.2)
    delta = export(model, tuned)
    to_shira(delta, tmp_path / "shira", model)
    from peft import PeftModel

    targets = PeftModel.from_pretrained(model, tmp_path / "shira").targeted_module_names
    assert targets == ["fc"]


def test_a_dot_in_a_name_is_no_wildcard(tmp_path: Path) -> None:
    model = nn.ModuleDict({"a": nn.ModuleDict({"fc": nn.Linear(8, 8)}), "a_fc": nn.Linear(8, 8)})
    delta = export(model, change_weights(dict(model.state_dict()), ["a.fc.weight"], share=0.2))
    to_shira(delta, tmp_path / "shira", model)
    from peft import PeftModel

    assert PeftModel.from_pretrained(model, tmp_path / "shira").targeted_module_names == ["a.fc"]


def test_modules_to_save_whose_name_others_end_with_are_refused(tmp_path: Path) -> None:
    model = nn.ModuleDict({"fc": nn.Linear(8, 8), "head": nn.Linear(8, 2), "subhead": nn.Linear(8, 2)})
    tuned = change_weights(dict(model.state_dict()), ["fc.weight"], share=0.2)
    delta = export(model, tuned | {"head.weight": tuned["head.weight"] + 1}, modules_to_save=["head"])
    with refused(NotCarriedError, "2", "head.weight", file="shira"):
        to_shira(delta, tmp_path / "shira", model)


def test_layers_alone_and_float8_are_refused(tmp_path: Path) -> None:
    model = nn.Linear(8, 8)
    delta = export(model, change_weights(dict(model.state_dict()), ["weight"], share=0.2))
    with refused(NotCarriedError, "1 tensors", "weight", file="shira"):
        to_shira(delta, tmp_path / "shira", model)
    tiny = nn.Sequential(nn.Linear(8, 8))
    tiny[0].weight = nn.Parameter(tiny[0].weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    state = dict(tiny.state_dict())
    delta = export(state, state | {"0.weight": torch.ones(8, 8).to(torch.float8_e4m3fn)})
    with refused(NotCarriedError, "0.weight", '"replace"', file="shira"):
        to_shira(delta, tmp_path / "shira", tiny)


def test_what_cannot_be_carried_is_listed_and_left_out_on_request(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {
            "fc": nn.Linear(8, 6),
            "conv": nn.Conv2d(2, 2, 3),
            "norm": nn.LayerNorm(6),
            "embed": nn.Embedding(9, 8),
            "attention": nn.MultiheadAttention(8, 2),
            "dense": nn.Linear(8, 7),
            "head": nn.Linear(8, 2),
        }
    )
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tuned = {name: tensor.clone() for name, tensor in state.items()}
    for name in ("fc.bias", "conv.weight", "norm.weight", "embed.weight", "attention.out_proj.weight", "dense.weight"):
        tuned[name] *= 1.25
    tuned = change_weights(tuned, ["fc.weight"], share=0.2) | {"extra": torch.ones(1)}
    delta = export(state, tuned, modules_to_save=["head.bias"])
    with pytest.raises(NotCarriedError) as caught:
        to_shira(delta, tmp_path / "shira", model)
    message = str(caught.value)
    reasons = {
        "fc.bias": "is the bias of Linear fc",
        "conv.weight": "is the weight of Conv2d conv",
        "norm.weight": "is the weight of LayerNorm norm",
        "embed.weight": "is the weight of Embedding embed",
        "attention.out_proj.weight": "is the weight of NonDynamicallyQuantizableLinear attention.out_proj",
        "dense.weight": "has 56 of 7 x 8 entries, but all layers share one rank r, here 2, and store 30",
        "head.bias": "is stored whole, but PEFT saves whole modules only",
        "extra": "is stored whole, but PEFT saves whole modules only",
    }
    assert f"cannot carry {len(reasons)} tensors; convert the rest with partial=True (--partial)" in message
    assert [f"{name} {reason}" for name, reason in reasons.items() if f"{name} {reason}" not in message] == []
    assert not (tmp_path / "shira").exists()
    assert to_shira(delta, tmp_path / "shira", model, partial=True) == reasons
    rest = from_peft(tmp_path / "shira", model)
    assert dict(rest.parameters) == {"fc.weight": delta["fc.weight"]}
    with refused(NotCarriedError, "3 tensors", "norm.weight", "head.bias", "extra", file="x"):
        to_shira(replace(delta, parameters={"norm.weight": delta["norm.weight"]}), tmp_path / "x", model, partial=True)


def test_entries_that_addition_misses_are_refused_or_come_near(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    with torch.no_grad():
        model[0].weight[0, 0] = 1e8
    tuned = dict(model.state_dict(), **{"0.weight": model[0].weight.detach().clone()})
    tuned["0.weight"][0, :2] = torch.tensor([1e-8, 3.0])
    delta = export(model, tuned)
    with refused(NotCarriedError, "0.weight has 1 ", file="shira"):
        to_shira(delta, tmp_path / "shira", model)
    assert to_shira(delta, tmp_path / "shira", model, partial=True).keys() == {"0.weight"}
    merged = merge(dict(model.state_dict()), from_peft(tmp_path / "shira", model))
    assert merged["0.weight"][0, :2].tolist() == [0.0, 3.0]


def test_steps_become_residuals_with_the_base_that_is_there(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    tuned = change_weights(dict(model.state_dict()), ["0.weight"], share=0.2)
    steps = export(model, tuned, op="step")
    steps.save(tmp_path / "steps.safetensors")
    to_shira(tmp_path / "steps.safetensors", tmp_path / "shira", model)
    assert from_peft(tmp_path / "shira", model) == export(model, tuned)


def test_tied_weights_are_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    changed = change_weights({"0.weight": model[0].weight.detach()}, ["0.weight"], share=0.2)["0.weight"]
    tuned = {**model.state_dict(), "0.weight": changed, "1.weight": changed}
    with refused(NotCarriedError, "0.weight", "2 layers", file="no"):
        to_shira(export(model, tuned), tmp_path / "no", model)
    language = save(tiny_llama(tied=True), tmp_path / "tied")
    state = dict(open_checkpoint(language))
    embedding = change_weights(state, ["model.embed_tokens.weight"], share=0.1)
    with refused(NotCarriedError, "model.embed_tokens.weight", file="no"):
        to_shira(export(language, embedding), tmp_path / "no", language)


@pytest.mark.parametrize("nnz", [0, 1, 15, 16, 30, 44, 45, 48])
def test_the_rank_is_the_lowest_that_has_slots_for_all(nnz: int) -> None:
    """Layers of 8 + 7 = 15: 45 slots of 56 weights at most."""
    layer = Layer(nnz, 8, 7)
    small = Layer(5, 8, 7)
    rank = choose_rank({"a": layer, "b": small})
    fits = nnz <= 45
    assert rank == (max(1, -(-nnz // 15)) if fits else 1)
    assert layer.holds(rank) is fits
    assert small.holds(rank)


def test_a_rank_for_all_gives_way_to_one_for_most() -> None:
    needy, tiny = Layer(150, 20, 20), Layer(3, 4, 4)
    assert tiny.holds(1)
    assert not tiny.holds(3)  # 24 slots in 16 weights
    assert choose_rank({"tiny": tiny, "needy": needy}) == 4
    assert choose_rank({"column": Layer(1, 10, 1)}) == 1
    assert not Layer(1, 10, 1).holds(1)


def test_layers_whose_owner_reads_their_weights_are_refused(tmp_path: Path) -> None:
    """In evaluation `nn.TransformerEncoderLayer` calls none of its layers: PEFT's would have no effect."""
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    delta = export(model, change_weights(dict(model.state_dict()), ["0.linear1.weight"], share=0.2))
    with refused(NotCarriedError, "0.linear1.weight", "TransformerEncoderLayer", file="shira"):
        to_shira(delta, tmp_path / "shira", model)


def test_a_base_of_other_weights_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    delta = export(model, change_weights(dict(model.state_dict()), ["0.weight"], share=0.2))
    other = nn.Sequential(nn.Linear(8, 8))
    with refused(WrongBaseError, "19", file="Sequential", parameter="0.weight"):
        to_shira(delta, tmp_path / "shira", other)
    assert to_shira(delta, tmp_path / "shira", other.to("meta")) == {}


def test_bases_that_do_not_fit(tmp_path: Path) -> None:
    delta = export({"0.weight": torch.zeros(3, 5)}, {"0.weight": torch.ones(3, 5)})
    with refused(ParameterMismatchError, "(3, 5)", "(4, 4)", parameter="0.weight"):
        to_shira(delta, tmp_path / "shira", nn.Sequential(nn.Linear(4, 4)))
    with refused(NotCarriedError, "0.weight", file="shira"):
        to_shira(delta, tmp_path / "shira", nn.ModuleDict({"other": nn.Linear(2, 2)}))
    with refused(CheckpointError, file=tmp_path):
        to_shira(delta, tmp_path / "shira", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForNothing"]}))
    with refused(CheckpointError, "'LlamaForNothing'", file=tmp_path):
        to_shira(delta, tmp_path / "shira", tmp_path)
    with refused(NotCarriedError, file="shira"):
        to_shira(SparseDelta({}), tmp_path / "shira", nn.Sequential(nn.Linear(4, 4)))

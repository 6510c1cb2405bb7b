"""`rst convert` from adapters of PEFT and released checkpoints, and to SHiRA folders and task vectors."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

import rst as library
from rst.checkpoints.checkpoint import open_checkpoint
from rst.live.adapter_folder import write_adapter
from tests.rst.cli.conftest import files, is_one_sentence, read, same_bytes
from tests.rst.interop.conftest import RENAMED, save, tiny_llama

pytestmark = [
    pytest.mark.filterwarnings(RENAMED),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled:UserWarning"),
]


def changed(model: LlamaForCausalLM, scale: float = 1.25) -> LlamaForCausalLM:
    """Change some entries of every projection, and no two layers alike."""
    with torch.no_grad():
        for number, (name, weight) in enumerate(model.named_parameters()):
            if name.endswith("proj.weight"):
                weight.view(-1)[: 3 + number] *= scale
    return model


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """`base/` and `lora/`."""
    save(tiny_llama(), tmp_path / "base")
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(tiny_llama(), config).save_pretrained(tmp_path / "lora")
    return tmp_path / "lora"


@pytest.fixture
def tuned(rst, tmp_path: Path) -> dict[str, torch.Tensor]:
    """`base/`, and `delta.safetensors` to the weights returned."""
    base = save(tiny_llama(), tmp_path / "base")
    model = changed(tiny_llama())
    library.export(base, model).save(tmp_path / "delta.safetensors")
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_a_lora_becomes_a_delta_that_merges_to_what_peft_merges(rst, tmp_path, lora):
    ran = rst("convert", "lora", "lora.safetensors", "--base", "base", "--encoding", "packed", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.json == {
        "output": "lora.safetensors",
        "bytes": (tmp_path / "lora.safetensors").stat().st_size,
        "to": "delta",
        "delta": "lora",
        "delta_bytes": sum(file.stat().st_size for file in lora.iterdir()),
        "encoding": "packed",
        "op": "add",
    }
    assert rst("merge", "base", "lora.safetensors", "-o", "merged.safetensors").code == 0
    wanted = PeftModel.from_pretrained(tiny_llama(), lora).merge_and_unload().state_dict()
    assert same_bytes(read(tmp_path / "merged.safetensors"), dict(wanted))
    everything = library.SparseDelta.load(tmp_path / "lora.safetensors").nnz
    assert rst("convert", "lora", "sparse.safetensors", "--base", "base", "--threshold", "0.2").code == 0
    assert 0 < library.SparseDelta.load(tmp_path / "sparse.safetensors").nnz < everything


def test_a_delta_becomes_a_shira_folder_and_comes_back(rst, tmp_path, tuned):
    ran = rst("convert", "delta.safetensors", "shira", "--to", "shira", "--base", "base")
    assert (ran.code, ran.err) == (0, "")
    assert "wrote shira (" in ran.out
    merged = PeftModel.from_pretrained(tiny_llama(), tmp_path / "shira").merge_and_unload()
    assert same_bytes(dict(merged.state_dict()), tuned)
    assert rst("convert", "shira", "back.safetensors", "--base", "base").code == 0
    found, wanted = (library.SparseDelta.load(tmp_path / f"{name}.safetensors") for name in ("back", "delta"))
    assert found == wanted


def test_steps_and_folders_of_save_pretrained_become_shira_too(rst, tmp_path, tuned):
    assert rst("convert", "delta.safetensors", "steps.safetensors", "--op", "step", "--base", "base").code == 0
    write_adapter(tmp_path / "adapter", library.SparseDelta.load(tmp_path / "steps.safetensors"))
    assert rst("convert", "adapter", "shira", "--to", "shira", "--base", "base").code == 0
    merged = PeftModel.from_pretrained(tiny_llama(), tmp_path / "shira").merge_and_unload()
    assert same_bytes(dict(merged.state_dict()), tuned)


def test_what_a_shira_folder_cannot_carry_is_listed(rst, tmp_path, tuned):
    tuned = {**tuned, "model.norm.weight": tuned["model.norm.weight"] * 2}
    library.export(tmp_path / "base", tuned).save(tmp_path / "normed.safetensors")
    before = files(tmp_path)
    words = ("convert", "normed.safetensors", "shira", "--to", "shira", "--base", "base")
    refused = rst(*words)
    assert is_one_sentence(refused)
    assert "cannot carry 1 tensors" in refused.err
    assert "model.norm.weight is the weight of LlamaRMSNorm model.norm" in refused.err
    assert files(tmp_path) == before
    written = rst(*words, "--partial")
    assert written.code == 0
    assert "not carried as it is: model.norm.weight is the weight of LlamaRMSNorm model.norm" in written.out
    again = rst(*words, "--partial", "--force", "--json")
    assert again.json["left_out"] == {"model.norm.weight": "is the weight of LlamaRMSNorm model.norm"}


def test_a_released_checkpoint_becomes_a_delta(rst, tmp_path):
    base = {"conv.weight": torch.randn(4, 3, 2, 2), "bias": torch.randn(4)}
    residuals = {"conv.weight": torch.zeros(4, 3, 2, 2), "bias": torch.zeros(4)}
    residuals["conv.weight"][1, 2] = 0.37
    torch.save({f"encoder.{name}": tensor for name, tensor in base.items()}, tmp_path / "base.pt")
    sparse = {name: tensor.to_sparse() for name, tensor in residuals.items()}
    torch.save({"backbone_state_dict": sparse, "head_state_dict": {"weight": torch.ones(2, 4)}}, tmp_path / "ar2cl.pt")
    prefixes = ("--backbone-prefix", "encoder.", "--head-prefix", "fc.")
    ran = rst("convert", "ar2cl.pt", "delta.safetensors", "--base", "base.pt", *prefixes)
    assert (ran.code, ran.err) == (0, "")
    assert rst("merge", "base.pt", "delta.safetensors", "-o", "merged.pt").code == 0
    wanted = {f"encoder.{name}": tensor + residuals[name] for name, tensor in base.items()}
    assert same_bytes(read(tmp_path / "merged.pt"), wanted | {"fc.weight": torch.ones(2, 4)})


def test_a_delta_becomes_a_task_vector(rst, tmp_path, tuned):
    ran = rst("convert", "delta.safetensors", "vector.safetensors", "--to", "task-vector", "--json")
    assert (ran.json["to"], ran.json["left_out"]) == ("task-vector", {})
    base = open_checkpoint(tmp_path / "base")
    moved = {name: tensor - base[name] for name, tensor in tuned.items() if not torch.equal(tensor, base[name])}
    assert same_bytes(load_file(tmp_path / "vector.safetensors"), moved)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("lora", "x.safetensors"),
            "lora: an adapter of PEFT needs its base to become a delta; pass the base with --base",
        ),
        (("lora", "x.pt", "-b", "base"), "a delta must be a .safetensors file"),
        (("base", "x.safetensors", "-b", "base"), "base: not the folder of a PEFT adapter"),
        (("lora", "lora", "-b", "base", "--to", "shira", "--force"), "contains the input lora/"),
        (("lora", "base", "-b", "base", "--to", "shira", "--force"), "contains the input base/model.safetensors"),
        (("d.safetensors", "x", "--to", "shira"), "--to shira needs the base's model folder"),
        (("d.safetensors", "d.safetensors", "--to", "shira", "-b", "base"), "is a file; name a folder"),
        (("d.safetensors", "full", "--to", "shira", "-b", "base"), "full: already exists; overwrite it with --force"),
        (("d.safetensors", "a/b", "--to", "shira", "-b", "base"), "there is no folder a"),
        (("d.safetensors", "x.safetensors", "--threshold", "1"), "d.safetensors: is a delta"),
        (("d.safetensors", "x.safetensors", "--head-prefix", "h."), "d.safetensors: is a delta"),
        (("d.safetensors", "x.safetensors", "--partial"), "--partial applies to --to shira and --to task-vector"),
        (
            ("d.safetensors", "x.safetensors", "--to", "task-vector", "--op", "add"),
            "--encoding and --op apply to deltas",
        ),
        (("d.safetensors", "x.pt", "--to", "task-vector"), "a task vector must be a .safetensors file"),
        (("plain.pt", "x.safetensors", "-b", "base"), "plain.pt: not a released checkpoint"),
        (("plain.pt", "x.safetensors"), "plain.pt: a released checkpoint needs its base"),
        (("gone", "x.safetensors"), "gone: no such file"),
    ],
    ids=str,
)
def test_refusals_write_nothing(rst, tmp_path, lora, words, message):
    library.export({"w": torch.zeros(2)}, {"w": torch.ones(2)}).save(tmp_path / "d.safetensors")
    torch.save({"w": torch.zeros(2)}, tmp_path / "plain.pt")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "here.txt").write_text("first")
    before = files(tmp_path)
    ran = rst("convert", *words)
    assert is_one_sentence(ran)
    assert message in ran.err
    assert files(tmp_path) == before

"""A finished checkpoint's top share: exactly what a training that selects once, at its end, exports."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from rst import ConfigError, ResidualSparseTrainer, RSTConfig, SparseDelta, export, merge
from rst.cli import main
from tests.refusal import refused

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def pair(dtypes: tuple[torch.dtype, ...], seed: int = 0, *, coarse: bool = False) -> tuple[dict[str, Tensor], ...]:
    """W0 and wt, one tensor a dtype; coarse changes have many equals."""
    generator = torch.Generator().manual_seed(seed)
    base = {f"w{k}": torch.randn(40, 30, generator=generator).to(dtype) for k, dtype in enumerate(dtypes)}
    tuned = {}
    for name, origin in base.items():
        change = torch.randn(origin.shape, generator=generator) * 1e-2
        change = change.mul(200).round().div(200) if coarse else change
        tuned[name] = (origin + change.to(origin.dtype)).contiguous()
    return base, tuned


class Holder(nn.Module):
    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        for name, weight in weights.items():
            self.register_parameter(name, nn.Parameter(weight.clone()))


def selected_once(base: dict[str, Tensor], tuned: dict[str, Tensor], config: RSTConfig) -> SparseDelta:
    model = Holder(base)
    trainer = ResidualSparseTrainer(model, config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(tuned[name])
    trainer._steps = 1  # an optimiser's, so that nothing is to be said
    return trainer.export()


@given(
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=1, max_size=3),
    ratio=st.one_of(st.floats(1e-4, 0.25), st.just(1.0)),
    seed=st.integers(0, 99),
    coarse=st.booleans(),
)
def test_it_is_what_a_trainer_exports(dtypes: list[torch.dtype], ratio: float, seed: int, coarse: bool) -> None:
    base, tuned = pair(tuple(dtypes), seed, coarse=coarse)
    found = export(base, tuned, ratio=ratio)
    moved = sum(int((tuned[name] - base[name]).count_nonzero()) for name in base)
    assert found.nnz == min(round(ratio * 1200 * len(base)), moved)
    if ratio < 0.25:
        wanted = selected_once(base, tuned, RSTConfig(ratio=ratio, every=0))
        assert found.parameters == wanted.parameters


def test_of_equal_changes_the_first_are_kept() -> None:
    base = {"a": torch.zeros(4), "b": torch.zeros(4)}
    tuned = {"a": torch.tensor([1.0, 0.0, 1.0, 1.0]), "b": torch.tensor([2.0, 1.0, 1.0, 0.0])}
    found = export(base, tuned, ratio=0.5)
    assert {name: change.indices.tolist() for name, change in found.items()} == {"a": [0, 2, 3], "b": [0]}


def test_what_is_not_selected_from_is_stored_beside() -> None:
    base = {"w": torch.zeros(100), "head.weight": torch.zeros(3), "n": torch.zeros(2, dtype=torch.int8)}
    tuned = {name: tensor + torch.arange(tensor.numel()).to(tensor.dtype) for name, tensor in base.items()}
    infinite = {"inf": torch.full((4,), torch.inf)}
    found = export(base | infinite, tuned | infinite, ratio=0.05, modules_to_save=["head"])
    assert found["w"].indices.tolist() == [95, 96, 97, 98, 99]
    assert set(found) == {"w", "n"}
    assert set(found.dense) == {"head.weight"}
    assert found.config == {"select": "top", "ratio": 0.05, "modules_to_save": ["head"]}


@pytest.mark.parametrize("kind", ["file", "shards", "pickle"])
def test_files_give_what_memory_gives(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, tuned = pair((torch.float32, torch.bfloat16))
    wanted = export(base, tuned, ratio=0.01)
    paths = []
    for label, weights in (("base", base), ("tuned", tuned)):
        folder = tmp_path / label
        folder.mkdir()
        if kind == "file":
            save_file(weights, folder / "model.safetensors")
        elif kind == "pickle":
            torch.save(weights, folder / "pytorch_model.bin")
        else:
            index = {name: f"{name}.safetensors" for name in weights}
            for name, file in index.items():
                save_file({name: weights[name]}, folder / file)
            (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
        paths.append(folder)
    seen: list[tuple[int, int]] = []
    found = export(*paths, ratio=0.01, on_progress=lambda done, total: seen.append((done, total)))
    assert found.parameters == wanted.parameters
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1] == seen[0][1]
    monkeypatch.setattr("rst.operations.resumable_export.PART_BYTES", 1)
    assert export(*paths, ratio=0.01, output=tmp_path / "delta.safetensors").parameters == wanted.parameters


def test_only_biases() -> None:
    torch.manual_seed(0)
    base, tuned = nn.Linear(4, 3), nn.Linear(4, 3)
    found = export(base, tuned, select="bias")
    assert {name: change.nnz for name, change in found.items()} == {"bias": 3}
    assert found.base.weights == 15
    assert torch.equal(merge(base.state_dict(), found)["weight"], base.weight)


@pytest.mark.parametrize(
    "config", [RSTConfig(ratio=0.1, every=0), RSTConfig(ratio=0.1, total_steps=50), RSTConfig(select="bias", every=0)]
)
def test_a_checkpoint_with_a_record_gives_what_its_trainer_gives(config: RSTConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(20, 20)
    trainer = ResidualSparseTrainer(model, config)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer.attach(optimizer)
    model(torch.randn(8, 20)).square().mean().backward()
    optimizer.step()
    torch.save({"state_dict": model.state_dict(), "rst": trainer.state_dict()}, tmp_path / "model.ckpt")
    assert export(None, tmp_path / "model.ckpt") == trainer.export()
    fewer = export(None, tmp_path / "model.ckpt", ratio=0.01)
    assert (fewer.nnz, fewer.config["ratio"], fewer.config["select"]) == (4, 0.01, "top")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, tuned = pair((torch.float32,))
    save_file(base, tmp_path / "base.safetensors")
    save_file(tuned, tmp_path / "tuned.safetensors")
    words = ["export", str(tmp_path / "tuned.safetensors"), "-b", str(tmp_path / "base.safetensors"), "--json"]
    assert main([*words, "--ratio", "0.01"]) == 0
    assert json.loads(capsys.readouterr().out)["changed"] == 12
    assert main([*words, "--select", "top", "--dry-run", "--force"]) == 0
    assert json.loads(capsys.readouterr().out)["changed"] == round(0.002 * 1200)
    assert main([*words, "--ratio", "2", "--force"]) == 2
    assert "2.0" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_what_has_no_meaning_for_a_finished_checkpoint_is_refused() -> None:
    weights = {"w": torch.zeros(2)}
    with refused(ConfigError, "0.1", "threshold"):
        export(weights, weights, ratio=0.1, threshold=0.2)
    with refused(ConfigError, "support"):
        export(weights, weights, select="support")
    with refused(ConfigError, "ratio", "1.5"):
        export(weights, weights, ratio=1.5)

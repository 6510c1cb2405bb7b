"""Real architectures: train a few steps, export, merge and apply, compare every byte."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from rst import ResidualSparseTrainer, RSTConfig, SparseDelta, export, merge, open_checkpoint
from rst.numerics.exactness import bit_equal
from tests.conftest import SHARED_DATA

pytestmark = pytest.mark.slow


def tune(model: nn.Module, config: RSTConfig, loss: Callable[[nn.Module], torch.Tensor], lr: float) -> SparseDelta:
    trainer = ResidualSparseTrainer(model, config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=lr, momentum=0.9)
    trainer.attach(optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
    return trainer.export()


def check_round_trip(base: nn.Module, tuned: nn.Module, delta: SparseDelta, folder: Path) -> None:
    """The delta by file, applied to the live base and merged into the saved one, gives the tuned model."""
    wanted = tuned.state_dict()
    delta.save(folder / "delta.safetensors")
    loaded = SparseDelta.load(folder / "delta.safetensors")
    assert loaded == delta
    torch.save(base.state_dict(), folder / "base.pt")
    merge(folder / "base.pt", folder / "delta.safetensors", folder / "merged.safetensors")
    merged = open_checkpoint(folder / "merged.safetensors")
    before = copy.deepcopy(base.state_dict())
    with loaded.apply(base):
        for name, tensor in wanted.items():
            assert bit_equal(merged[name], tensor), name
            assert bit_equal(base.state_dict()[name], tensor), name
    for name, tensor in before.items():
        assert bit_equal(base.state_dict()[name], tensor), name


@pytest.mark.parametrize(("architecture", "threshold"), [("RN50", 1e-5), ("ViT-B-16", 4e-3)])
def test_clip_image_encoders(architecture: str, threshold: float, tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    tuned = open_clip.create_model(architecture).visual
    base = copy.deepcopy(tuned)
    images = torch.randn(1, 3, 224, 224)
    tuned.eval()
    delta = tune(tuned, RSTConfig(threshold=threshold), lambda model: model(images).square().sum(), lr=1e-3)
    assert 1e-4 < delta.density < 1e-2
    check_round_trip(base, tuned, delta, tmp_path)


def test_a_causal_language_model_with_tied_embeddings(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=64, vocab_size=300, n_positions=32)
    tuned = transformers.GPT2LMHeadModel(config).to(torch.bfloat16)
    base = copy.deepcopy(tuned)
    tokens = torch.randint(300, (2, 16))
    delta = tune(tuned, RSTConfig(threshold=1e-4), lambda model: model(tokens, labels=tokens).loss, lr=0.1)
    assert "lm_head.weight" in delta.tied
    assert tuned.lm_head.weight is tuned.transformer.wte.weight
    check_round_trip(base, tuned, delta, tmp_path)

    base.save_pretrained(tmp_path / "base")
    tuned.save_pretrained(tmp_path / "tuned")
    folders = export(tmp_path / "base", tmp_path / "tuned")
    assert {name: change for name, change in folders.items() if name in delta} == dict(delta)
    out = tmp_path / "merged"
    out.mkdir()
    merge(tmp_path / "base", folders, out / "model.safetensors")
    (out / "config.json").write_text((tmp_path / "base" / "config.json").read_text())
    reloaded = transformers.GPT2LMHeadModel.from_pretrained(out, dtype=torch.bfloat16)
    for name, tensor in tuned.state_dict().items():
        assert bit_equal(reloaded.state_dict()[name], tensor), name


def test_batchnorm_statistics_travel(tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    tuned = torchvision.models.resnet18(num_classes=10)
    base = copy.deepcopy(tuned)
    images = torch.randn(4, 3, 64, 64)
    config = RSTConfig(threshold=1e-4, modules_to_save=["fc"])
    delta = tune(tuned.train(), config, lambda model: model(images).square().mean(), lr=1e-2)
    assert "bn1.running_mean" in delta.buffers
    assert {"fc.weight", "fc.bias"} <= delta.dense.keys()
    assert delta.dsp() == delta.nnz + 512 * 10 + 10
    check_round_trip(base, tuned, delta, tmp_path)
    base.eval()
    with delta.apply(base):
        assert torch.equal(base(images), tuned.eval()(images))


@pytest.mark.parametrize("name", ["resnet20-12fca82f.th", "resnet56-4bfd9763.th"])
def test_pretrained_cifar_networks(name: str, tmp_path: Path) -> None:
    path = SHARED_DATA / "cifar10_resnet" / name
    if not path.is_file():
        pytest.skip(f"the pretrained network {name} is not at hand")
    base = open_checkpoint(path)
    assert "conv1.weight" in base  # nested under state_dict, behind the prefix module.
    generator = torch.Generator().manual_seed(0)
    tuned = {name: tensor.clone() for name, tensor in base.items()}
    for tensor in tuned.values():
        if tensor.is_floating_point():
            tensor[torch.rand(tensor.shape, generator=generator) < 0.01] += 1e-3
    delta = export(path, tuned, threshold=1e-6)
    delta.save(tmp_path / "delta.safetensors")
    merge(path, tmp_path / "delta.safetensors", tmp_path / "merged.th")
    merged = open_checkpoint(tmp_path / "merged.th")
    assert merged.original_names == base.original_names
    for tensor_name, tensor in tuned.items():
        assert bit_equal(merged[tensor_name], tensor), tensor_name
    original = torch.load(path, map_location="cpu", weights_only=True)
    rewritten = torch.load(tmp_path / "merged.th", weights_only=True)
    assert original.keys() == rewritten.keys()
    assert {key: value for key, value in original.items() if key != "state_dict"} == {
        key: value for key, value in rewritten.items() if key != "state_dict"
    }

"""What the pages of the docs take as given: a model, an optimiser, checkpoints in the folder, and so on.

A fixture named by a comment in a page returns the names that the block after it uses.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rst import ResidualSparseTrainer, RSTConfig, RSTModel, export

Names = dict[str, Any]


class Classifier(nn.Module):
    """An encoder and a task head, small."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.ReLU())
        self.head = nn.Linear(32, 4)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(images))
        return logits


def nudged(model: nn.Module, seed: int, names: str = "") -> nn.Module:
    """A copy of a model in which a tenth of the weights, in parameters with `names` in theirs, is a quarter larger."""
    draw = torch.Generator().manual_seed(seed)
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if names in name:
                weight[torch.rand(weight.shape, generator=draw) < 0.1] *= 1.25
    return tuned


@pytest.fixture
def classifier() -> Names:
    """A pretrained model, two copies of it, an optimiser and three images."""
    model = Classifier().eval()
    return {
        "model": model,
        "base": copy.deepcopy(model),
        "served_model": copy.deepcopy(model),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "images": torch.randn(3, 3, 4, 4),
    }


@pytest.fixture
def untuned(classifier: Names) -> Names:
    """The classifier as it was before a block above trained it, and an optimiser of it."""
    model = copy.deepcopy(classifier["base"])
    return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}


@pytest.fixture
def adapter_folder(classifier: Names, tmp_path: Path) -> Names:
    """The folder pr2cl/ of another adapter of the classifier, with the same head."""
    base = classifier["base"]
    model = RSTModel(copy.deepcopy(base))
    model.add_adapter("default", export(base, nudged(base, 1, "encoder"), modules_to_save=["head"]))
    model.save_pretrained(tmp_path / "pr2cl")
    return {}


@pytest.fixture
def process_group() -> Iterator[Names]:
    """One process that is a group, so that collective calls can be made."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield {}
    torch.distributed.destroy_process_group()


@pytest.fixture
def sharded_trainer(process_group: Names) -> Names:
    """The trainer of a model that is sharded, and an unsharded one to publish."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    sharded = Classifier()
    fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
    return {"trainer": ResidualSparseTrainer(sharded, RSTConfig(threshold=1e-6)), "model": Classifier()}


@pytest.fixture
def two_domains() -> Names:
    """An encoder and a head, a labelled source batch, an unlabelled target batch, and four classes' embeddings."""
    model = Classifier()
    return {
        "encoder": model.encoder,
        "head": model.head,
        "class_embeddings": torch.randn(4, 32),
        "source_images": torch.randn(8, 3, 4, 4),
        "source_labels": torch.arange(8) % 4,
        "target_images": torch.randn(8, 3, 4, 4),
        "iteration": 0,
    }


@pytest.fixture
def parts_of_an_objective() -> Names:
    """What a method of one's own is made of."""
    from cmkd import Objective, Phase, gini_mean

    return {"Objective": Objective, "Phase": Phase, "gini_mean": gini_mean, "F": nn.functional, "BASELINES": {}}


@pytest.fixture
def text_model() -> Names:
    """A pretrained causal language model, and a batch to train it on."""
    from tests.rst.interop.conftest import tiny_llama

    words = torch.arange(8).view(2, 4)
    return {"base": tiny_llama(), "batch": {"input_ids": words, "labels": words}}


@pytest.fixture
def checkpoints(tmp_path: Path) -> Names:
    """The files that the command line's examples name: a base in several forms, tuned weights, adapters, deltas."""
    from peft import LoraConfig, get_peft_model

    from tests.rst.interop.conftest import save, tiny_llama

    base = tiny_llama()
    save(base, tmp_path / "base_folder")
    torch.save(base.state_dict(), tmp_path / "base.pt")
    torch.save(nudged(base, 1, "proj").state_dict(), tmp_path / "tuned.pt")
    for seed, name in enumerate(("a", "b"), start=2):
        export(base, nudged(base, seed, "proj")).save(tmp_path / f"{name}.safetensors")
    trained = copy.deepcopy(base)
    record = ResidualSparseTrainer(trained, RSTConfig(threshold=1e-6, target_modules=["q_proj", "v_proj"])).state_dict()
    torch.save({"state_dict": nudged(base, 5, "q_proj").state_dict(), "rst": record}, tmp_path / "model.ckpt")
    lora = get_peft_model(copy.deepcopy(base), LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False))
    lora.save_pretrained(str(tmp_path / "lora_folder"))
    return {"base": base}


@pytest.fixture
def text_classifier() -> Iterator[Names]:
    """A small BERT with its pretrained weights, a second copy of it, and eight labelled texts."""
    from transformers.utils import logging

    from tests.rst.interop.conftest import tiny_bert

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    model = tiny_bert()
    dataset = [{"input_ids": torch.randint(32, (6,)), "labels": torch.randint(3, ())} for _ in range(8)]
    yield {"model": model, "another_base": copy.deepcopy(model), "dataset": dataset}
    logging.set_verbosity(verbosity)


@pytest.fixture
def lightning_module() -> Names:
    """The classifier as a Lightning module, and a loader of random images."""
    from lightning.pytorch import LightningModule
    from torch.utils.data import DataLoader, TensorDataset

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.head = (part for _, part in Classifier().named_children())

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            return nn.functional.cross_entropy(self.head(self.encoder(batch[0])), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    data = TensorDataset(torch.randn(16, 3, 4, 4), torch.arange(16) % 4)
    return {"module": Module(), "loader": DataLoader(data, batch_size=4)}


@pytest.fixture
def image_folders(tmp_path: Path) -> Names:
    """Folders of noise as images, of a labelled and two target domains; a tiny random CLIP, and a short run."""
    import numpy as np
    import open_clip
    from PIL import Image

    from examples.uda.tiny_backbones import CONFIGS

    draw = np.random.default_rng(0)
    for folder in ("photos/dog", "photos/horse", "sketches/unlabelled", "drawings/dog", "drawings/horse"):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(8):
            pixels = draw.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{number}.jpg")
    if CONFIGS["vit"].stem not in open_clip.list_models():
        open_clip.add_model_config(CONFIGS["vit"])
    return {"MODEL": CONFIGS["vit"].stem, "WEIGHTS": None, "ITERATIONS": 2, "BATCH": 4}

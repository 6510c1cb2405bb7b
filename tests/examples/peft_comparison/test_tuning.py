"""What each tuning trains, what it stores, and that the files are enough to get the student back."""

import copy
import json
from functools import lru_cache

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn import functional as F

from cmkd import Objective, Phase, Student, TaskHead, freeze_batchnorm
from examples.peft_comparison.dense_layers import call_dense_layers
from examples.peft_comparison.rank_allocation import orthogonality
from examples.peft_comparison.tuning import count
from rst import ResidualSparseTrainer, RSTConfig, SparseDelta
from tests.examples.peft_comparison.test_dense_layers import IMAGES, clip_encoder
from tests.examples.peft_comparison.tiny_plan import PLAN, tuning_of

CLASSES = 4
STEPS = 12
RATES = {"AdaLoRA": 0.1}  # its product of three small matrices moves slowly
LABELS = torch.tensor([0, 1, 2])
ADAPTERS = [label for label in (tuning.label for tuning in PLAN.tunings()) if "A" in label and "r=" in label]


class OnOneBatch(Objective):
    """Cross entropy on the same images again and again."""

    def phases(self, student, batch, *, iteration, max_iterations):
        yield Phase(F.cross_entropy(student(batch), LABELS))


class Trained:
    """A tiny student after `STEPS` steps with one tuning, and what it was before."""

    def __init__(self, label, folder):
        torch.manual_seed(0)
        self.tuning = tuning_of(label)
        self.base = clip_encoder("RN50")
        encoder = copy.deepcopy(self.base)
        head = TaskHead(encoder(IMAGES).shape[1], CLASSES)
        freeze_batchnorm(encoder, affine=False)
        self.student = Student(encoder, head)
        objective = self.tuning.attach(self.student, OnOneBatch(), iterations=STEPS)
        self.before = {name: tensor.clone() for name, tensor in self.student.encoder.state_dict().items()}
        optimizer = torch.optim.SGD(
            [p for p in self.student.parameters() if p.requires_grad],
            lr=RATES.get(label.split()[0], 0.01),
            momentum=0.9,
        )
        self.trainer = None
        if self.tuning.threshold is not None:
            config = RSTConfig(threshold=self.tuning.threshold, modules_to_save=["head"])
            self.trainer = ResidualSparseTrainer(self.student, config)
            self.trainer.attach(optimizer)
        self.student.train()
        for iteration in range(STEPS):
            for phase in objective.phases(self.student, IMAGES, iteration=iteration, max_iterations=STEPS):
                optimizer.zero_grad()
                phase.total.backward()
                optimizer.step()
        self.student.eval()
        self.folder = folder
        self.stored = self.tuning.store(self.student, self.trainer, folder)

    @property
    def changed(self):
        after = self.student.encoder.state_dict()
        return {name for name, tensor in self.before.items() if not torch.equal(tensor, after[name])}

    @property
    def head(self):
        return count(self.student.head)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny student trained with a tuning, once for all tests."""
    return lru_cache(None)(lambda label: Trained(label, tmp_path_factory.mktemp("stored")))


def is_statistic(name):
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


@pytest.mark.parametrize("label", [tuning.label for tuning in PLAN.tunings()])
def test_trains_what_it_says_and_no_statistics(label, trained):
    before, changed = trained(label).before, trained(label).changed
    assert not [name for name in changed if is_statistic(name)]
    if label == "Linear probe":
        assert changed == set()
    elif label == "BitFit":
        silent = {"attnpool.k_proj.bias"}  # the softmax does not feel it
        assert changed | silent == {name for name in before if name.endswith("bias")}
    elif label in ADAPTERS:
        assert changed
        assert all("lora_" in name or "shira_" in name for name in changed)
    else:
        assert {"conv1.weight", "attnpool.v_proj.weight", "bn1.bias"} <= changed


def test_counts_on_disk(trained):
    for label in (tuning.label for tuning in PLAN.tunings()):
        files = {path.name: path for path in trained(label).folder.iterdir()}
        if label.startswith("RST"):
            delta = SparseDelta.load(files["delta.safetensors"])
            written = delta.nnz + sum(t.numel() for name, t in delta.dense.items() if not is_statistic(name))
            assert 0 < delta.nnz < count(trained(label).base)
        else:
            tensors = {
                key: t for path in files.values() if path.suffix == ".safetensors" for key, t in load_file(path).items()
            }
            floats = [t for name, t in tensors.items() if t.is_floating_point() and not is_statistic(name)]
            written = sum(t.numel() for t in floats)
        assert trained(label).stored == written, label


def test_numbers_of_parameters(trained):
    linear = copy.deepcopy(clip_encoder("RN50"))
    layers = [linear.get_submodule(name) for name in call_dense_layers(linear)]
    rank_one = sum(layer.in_features + layer.out_features for layer in layers)
    stored = {}
    for label in ("Full fine-tuning", "BitFit", "LoRA r=1", "LoRA r=4", "SHiRA r=1"):
        stored[label] = trained(label).stored - trained(label).head
    biases = sum(p.numel() for name, p in clip_encoder("RN50").named_parameters() if name.endswith("bias"))
    assert stored == {
        "Full fine-tuning": count(clip_encoder("RN50")),
        "BitFit": biases,
        "LoRA r=1": rank_one,
        "LoRA r=4": 4 * rank_one,
        "SHiRA r=1": rank_one,
    }


# PEFT says so of every AdaLoRA folder that it reads
@pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match:RuntimeWarning")
@pytest.mark.parametrize("label", ADAPTERS)
def test_the_folder_is_enough(label, trained):
    found = trained(label)
    encoder = copy.deepcopy(found.base)
    call_dense_layers(encoder)
    encoder = PeftModel.from_pretrained(encoder, found.folder).eval()
    head = TaskHead(found.student.head.linear.in_features, CLASSES).eval()
    head.load_state_dict(load_file(found.folder / "head.safetensors"))
    with torch.no_grad():
        torch.testing.assert_close(head(encoder(IMAGES)), found.student(IMAGES), rtol=1e-5, atol=1e-6)
        assert not torch.allclose(encoder(IMAGES), found.base(IMAGES), atol=1e-5)


@pytest.mark.parametrize(("label", "first", "last"), [("AdaLoRA r=2 to 1", 2, 1), ("AdaLoRA r=8 to 4", 8, 4)])
def test_ranks_shrink_to_the_budget(label, first, last, trained):
    found = trained(label)
    values = {name: t for name, t in found.student.encoder.state_dict().items() if "lora_E" in name}
    kept = sum(int((t != 0).sum()) for t in values.values())
    assert all(len(t) == first for t in values.values())
    assert kept == last * len(values)
    pattern = json.loads((found.folder / "adapter_config.json").read_text())["rank_pattern"]
    assert sum(map(sum, pattern.values())) == last * len(values)
    saved = load_file(found.folder / "adapter_model.safetensors")
    assert sum(t.shape[0] for name, t in saved.items() if "lora_E" in name) == last * len(values)


def test_orthogonality_pulls(trained):
    found = trained("AdaLoRA r=8 to 4")
    encoder = copy.deepcopy(found.student.encoder)
    after = orthogonality(encoder).item()
    encoder.load_state_dict(found.before)
    matrices = [p.detach() for name, p in encoder.named_parameters() if "lora_A" in name or "lora_B" in name]
    rows = [p if p.shape[0] == 8 else p.T for p in matrices]
    expected = sum(float(((r @ r.T - torch.eye(8)) ** 2).sum() ** 0.5) for r in rows) / len(rows)
    assert orthogonality(encoder).item() == pytest.approx(expected, rel=1e-5)
    assert after < expected

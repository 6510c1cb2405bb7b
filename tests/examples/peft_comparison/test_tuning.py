"""What each tuning trains, what it stores, and that the files are enough to get the student back."""

import copy
import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn import functional as F

from cmkd import Objective, Phase, Student, TaskHead, freeze_batchnorm
from examples.peft_comparison.dense_layers import call_dense_layers
from examples.peft_comparison.tuning import count
from rst import ResidualSparseTrainer, RSTConfig, SparseDelta
from tests.examples.peft_comparison.test_dense_layers import IMAGES, clip_encoder
from tests.examples.peft_comparison.tiny_plan import PLAN, tuning_of

CLASSES = 4
STEPS = 12
LABELS = torch.tensor([0, 1, 2])
ADAPTERS = [label for label in (tuning.label for tuning in PLAN.tunings()) if "A" in label and "r=" in label]


class OnOneBatch(Objective):
    """Cross entropy on the same images again and again."""

    def phases(self, student, batch, *, iteration, max_iterations):
        yield Phase(F.cross_entropy(student(batch), LABELS))


class Trained:
    """A tiny student after `STEPS` steps with one tuning, and what it was before."""

    def __init__(self, label, folder, steps=STEPS):
        torch.manual_seed(0)
        self.tuning = tuning_of(label)
        self.base = clip_encoder("RN50")
        encoder = copy.deepcopy(self.base)
        head = TaskHead(encoder(IMAGES).shape[1], CLASSES)
        freeze_batchnorm(encoder, affine=False)
        self.student = Student(encoder, head)
        objective = self.tuning.attach(self.student, OnOneBatch(), iterations=steps)
        self.before = {name: tensor.clone() for name, tensor in self.student.encoder.state_dict().items()}
        optimizer = torch.optim.SGD([p for p in self.student.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
        self.trainer = None
        if self.tuning.threshold is not None:
            config = RSTConfig(threshold=self.tuning.threshold, modules_to_save=["head"])
            self.trainer = ResidualSparseTrainer(self.student, config)
            self.trainer.attach(optimizer)
        self.student.train()
        for iteration in range(steps):
            for phase in objective.phases(self.student, IMAGES, iteration=iteration, max_iterations=steps):
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


def is_statistic(name):
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


@pytest.mark.parametrize("label", [tuning.label for tuning in PLAN.tunings()])
def test_trains_what_it_says_and_no_statistics(label, tmp_path):
    trained = Trained(label, tmp_path)
    changed = trained.changed
    assert not [name for name in changed if is_statistic(name)]
    if label == "Linear probe":
        assert changed == set()
    elif label == "BitFit":
        silent = {"attnpool.k_proj.bias"}  # the softmax does not feel it
        assert changed | silent == {name for name in trained.before if name.endswith("bias")}
    elif label in ADAPTERS:
        assert changed
        assert all("lora_" in name or "shira_" in name for name in changed)
    else:
        assert {"conv1.weight", "attnpool.v_proj.weight", "bn1.bias"} <= changed


def test_counts_on_disk(tmp_path):
    for label in (tuning.label for tuning in PLAN.tunings()):
        folder = tmp_path / label
        folder.mkdir()
        trained = Trained(label, folder)
        files = {path.name: path for path in folder.iterdir()}
        if label.startswith("RST"):
            delta = SparseDelta.load(files["delta.safetensors"])
            written = delta.nnz + sum(t.numel() for name, t in delta.dense.items() if not is_statistic(name))
            assert 0 < delta.nnz < count(trained.base)
        else:
            tensors = {
                key: t for path in files.values() if path.suffix == ".safetensors" for key, t in load_file(path).items()
            }
            floats = [t for name, t in tensors.items() if t.is_floating_point() and not is_statistic(name)]
            written = sum(t.numel() for t in floats)
        assert trained.stored == written, label


def test_numbers_of_parameters(tmp_path):
    linear = copy.deepcopy(clip_encoder("RN50"))
    layers = [linear.get_submodule(name) for name in call_dense_layers(linear)]
    rank_one = sum(layer.in_features + layer.out_features for layer in layers)
    stored = {}
    for label in ("Full fine-tuning", "BitFit", "LoRA r=1", "LoRA r=4", "SHiRA r=1"):
        folder = tmp_path / label
        folder.mkdir()
        trained = Trained(label, folder, steps=4)
        stored[label] = trained.stored - trained.head
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
def test_the_folder_is_enough(label, tmp_path):
    trained = Trained(label, tmp_path)
    encoder = copy.deepcopy(trained.base)
    call_dense_layers(encoder)
    encoder = PeftModel.from_pretrained(encoder, tmp_path).eval()
    head = TaskHead(trained.student.head.linear.in_features, CLASSES).eval()
    head.load_state_dict(load_file(tmp_path / "head.safetensors"))
    with torch.no_grad():
        torch.testing.assert_close(head(encoder(IMAGES)), trained.student(IMAGES), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(encoder(IMAGES), trained.base(IMAGES), atol=1e-3)


@pytest.mark.parametrize(("label", "first", "last"), [("AdaLoRA r=2 to 1", 2, 1), ("AdaLoRA r=8 to 4", 8, 4)])
def test_ranks_shrink_to_the_budget(label, first, last, tmp_path):
    trained = Trained(label, tmp_path)
    values = {name: t for name, t in trained.student.encoder.state_dict().items() if "lora_E" in name}
    kept = sum(int((t != 0).sum()) for t in values.values())
    assert all(len(t) == first for t in values.values())
    assert kept == last * len(values)
    pattern = json.loads((tmp_path / "adapter_config.json").read_text())["rank_pattern"]
    assert sum(map(sum, pattern.values())) == last * len(values)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(t.shape[0] for name, t in saved.items() if "lora_E" in name) == last * len(values)


def test_orthogonality_pulls(tmp_path):
    from examples.peft_comparison.rank_allocation import orthogonality

    trained = Trained("AdaLoRA r=8 to 4", tmp_path)
    encoder = trained.student.encoder
    after = orthogonality(encoder).item()
    encoder.load_state_dict(trained.before)
    matrices = [p.detach() for name, p in encoder.named_parameters() if "lora_A" in name or "lora_B" in name]
    rows = [p if p.shape[0] == 8 else p.T for p in matrices]
    expected = sum(float(((r @ r.T - torch.eye(8)) ** 2).sum() ** 0.5) for r in rows) / len(rows)
    assert orthogonality(encoder).item() == pytest.approx(expected, rel=1e-5)
    assert after < expected

"""Accuracy, accuracy of each class, and which of the two is reported."""

import pytest
import torch
from accelerate import Accelerator

from cmkd import VALIDATORS
from examples.uda.benchmarks import DomainDataset
from examples.uda.evaluation import evaluate
from examples.uda.image_pass import BATCH_SIZE, ImagePass

CLASSES = 5


class Coloured(DomainDataset):
    """Image i is filled with i."""

    def __getitem__(self, index):
        return torch.full((3, 2, 2), float(index)), self.labels[index]

    def image(self, index):
        raise NotImplementedError


def classify(images):
    return torch.stack([torch.sin((c + 1) * images[:, 0, 0, 0]) for c in range(CLASSES)], dim=1)


@pytest.mark.parametrize("mean_per_class", [False, True])
def test_scores_against_counting(mean_per_class):
    labels = [0] * 100 + [1] * 20 + [3] * 10  # class 2 and 4 are missing, as in a partial set
    data = Coloured(labels, None)
    scores = evaluate(
        classify, ImagePass(data, torch.device("cpu"), workers=0), Accelerator(), mean_per_class=mean_per_class
    )
    logits = classify(torch.stack([data[i][0] for i in range(len(labels))]))
    right = [int(guess) == label for guess, label in zip(logits.argmax(dim=1), labels, strict=True)]
    per_class = {}
    for label in set(labels):
        own = [r for r, of in zip(right, labels, strict=True) if of == label]
        per_class[label] = 100 * sum(own) / len(own)
    assert scores.per_class == pytest.approx(per_class)
    mean = sum(per_class.values()) / 3 if mean_per_class else 100 * sum(right) / len(right)
    assert scores.accuracy == pytest.approx(mean)
    expected = {name: score(logits) for name, score in VALIDATORS.items()}
    assert scores.validators == pytest.approx(expected)


def test_a_pass_can_be_repeated_and_shared():
    data = Coloured(list(range(BATCH_SIZE + 7)), None)
    whole = ImagePass(data, torch.device("cpu"), workers=0)
    for _ in range(2):
        positions = torch.cat([batch.positions for batch in whole])
        images = torch.cat([batch.images for batch in whole])
        assert positions.tolist() == images[:, 0, 0, 0].tolist() == list(range(len(data)))
    shares = [ImagePass(data, torch.device("cpu"), workers=0, start=start, step=2) for start in range(2)]
    seen = [int(position) for share in shares for batch in share for position in batch.positions]
    assert sorted(seen) == list(range(len(data)))
    assert shares[1].labels.tolist() == list(range(len(data)))[1::2]

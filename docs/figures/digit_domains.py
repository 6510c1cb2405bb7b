"""The tutorial's two domains and its network: handwritten digits, upright and turned by 35 degrees."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.functional import rotate

from rst import ResidualSparseTrainer, RSTConfig, SparseDelta

TRAINING_IMAGES = 1000
DEGREES = 35.0


@dataclass(frozen=True)
class Digits:
    """1,797 images (N, 1, 8, 8) in [0, 1] in both domains, and their labels (N,)."""

    upright: Tensor
    turned: Tensor
    labels: Tensor


class Classifier(nn.Module):
    """Two convolutions, a linear layer and a task head: 71,754 weights."""

    def __init__(self) -> None:
        """Draw random weights from torch's generator."""
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(512, 128),
            nn.ReLU(),
        )
        self.head = nn.Linear(128, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 10) of images (B, 1, 8, 8)."""
        logits: Tensor = self.head(self.encoder(images))
        return logits


def load() -> Digits:
    """Read scikit-learn's digits and turn them."""
    digits = load_digits()
    upright = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    return Digits(upright, rotate(upright, DEGREES), torch.tensor(digits.target))


def train(
    model: nn.Module, images: Tensor, labels: Tensor, optimizer: torch.optim.Optimizer, steps: int
) -> Iterator[int]:
    """Train on batches of 64 of the training images, yielding after each step its number."""
    for step in range(steps):
        batch = torch.randint(TRAINING_IMAGES, (64,))
        loss = F.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield step


def pretrained(digits: Digits) -> Classifier:
    """A network that knows the upright digits, the same every time on one machine."""
    torch.manual_seed(0)
    model = Classifier()
    for _ in train(model, digits.upright, digits.labels, torch.optim.Adam(model.parameters(), lr=1e-3), 200):
        pass
    return model


def adapt(model: nn.Module, digits: Digits, threshold: float, every: int = 1) -> SparseDelta:
    """Fine-tune a copy of the pretrained network, in place, on the turned digits; return what is left of the change."""
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    trainer = ResidualSparseTrainer(model, RSTConfig(threshold=threshold, every=every))
    trainer.attach(optimizer)
    for _ in train(model, digits.turned, digits.labels, optimizer, 150):
        pass
    return trainer.export()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Per cent of the held-out images that are told right."""
    right = model(images[TRAINING_IMAGES:]).argmax(dim=1) == labels[TRAINING_IMAGES:]
    return 100 * right.float().mean().item()

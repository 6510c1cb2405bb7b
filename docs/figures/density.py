"""Where the changed weights of the tutorial's delta lie: by parameter, and inside the largest one."""

import copy
from pathlib import Path

import torch
from matplotlib import pyplot as plt

from docs.figures.digit_domains import Classifier, Digits, adapt
from docs.figures.style import COLORS, save

THRESHOLD = 2e-3
LARGEST = "encoder.6.weight"
PLACES = 16  # the linear layer reads 32 channels of 4 x 4 places


def draw(base: Classifier, digits: Digits, folder: Path) -> None:
    """Write `density.png`, and the delta's own table beside it."""
    delta = adapt(copy.deepcopy(base), digits, THRESHOLD)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.6), width_ratios=(1, 1.5))
    names = [name for name, _ in base.named_parameters()]
    shares = [100 * delta[name].density if name in delta else 0.0 for name in names]
    left.barh(names, shares, color=COLORS[0])
    left.invert_yaxis()
    left.set_xlabel("% changed")
    changed = torch.zeros(delta[LARGEST].numel)
    changed[delta[LARGEST].indices.long()] = 1
    units = changed.view(delta[LARGEST].shape).view(delta[LARGEST].shape[0], -1, PLACES)
    image = right.imshow(100 * units.mean(dim=2), aspect="auto", cmap="magma", interpolation="nearest")
    right.set(xlabel="input channel", ylabel="unit", title=LARGEST)
    figure.colorbar(image, ax=right, label=f"% changed of {PLACES}")
    save(figure, folder / "density.png")
    (folder / "density.md").write_text(f"```text\n{delta.summary()}\n```\n")

"""Measure and draw the figures and tables of the docs, a minute on one core.

python -m docs.figures
"""

from pathlib import Path

import matplotlib
import torch

from docs.figures import density, digit_domains, exactness, threshold

FOLDER = Path(__file__).parent


def main() -> None:
    """Write every PNG and every table beside this file."""
    matplotlib.use("agg")
    torch.set_num_threads(1)  # so that sums do not depend on how many cores there are
    digits = digit_domains.load()
    base = digit_domains.pretrained(digits)
    exactness.draw(FOLDER)
    threshold.draw(base, digits, FOLDER)
    density.draw(base, digits, FOLDER)


if __name__ == "__main__":
    main()

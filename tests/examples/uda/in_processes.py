"""What test_processes starts twice: python -m torch.distributed.run --nproc_per_node 2 -m ... <folder>."""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from examples.uda.benchmarks import DomainDataset
from examples.uda.evaluation import evaluate
from examples.uda.image_pass import ImagePass
from examples.uda.processes import average_gradients, average_statistics
from tests.examples.uda.smoke_runs import run, tiny_cell


def check_averages(accelerator: Accelerator) -> None:
    """Rank r has gradients 1 + 2r and statistics 10r; afterwards both have 2 and 5."""
    rank = accelerator.process_index
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2))
    model[0].weight.grad = torch.full((2, 2), 1.0 + 2 * rank)
    model[1].running_mean.fill_(10.0 * rank)
    average_gradients(torch.optim.SGD(model.parameters()), accelerator)
    average_statistics(model, accelerator)
    assert torch.equal(model[0].weight.grad, torch.full((2, 2), 2.0))
    assert model[1].weight.grad is None
    assert torch.equal(model[1].running_mean, torch.full((2,), 5.0))


class Numbered(DomainDataset):
    """Image i is filled with i, of class i modulo 3."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """The image and its label."""
        return torch.full((3, 2, 2), float(index)), self.labels[index]

    def image(self, index: int) -> None:
        """Unused."""


def check_evaluation(accelerator: Accelerator) -> None:
    """A classifier that is right on the first 60 of 90 images scores two thirds, whoever saw which image."""

    def classify(images: torch.Tensor) -> torch.Tensor:
        number = images[:, 0, 0, 0].long()
        return nn.functional.one_hot((number + (number >= 60)) % 3, 3).float()

    data = Numbered([i % 3 for i in range(90)], None)
    rank = accelerator.process_index
    share = ImagePass(data, accelerator.device, workers=0, start=rank, step=accelerator.num_processes)
    scores = evaluate(classify, share, accelerator, mean_per_class=False)
    assert abs(scores.accuracy - 100 * 60 / 90) < 1e-4


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    state = Accelerator()
    assert state.num_processes == 2
    check_averages(state)
    check_evaluation(state)
    result = run(tiny_cell(folder, method="cmkd+rst"), folder / "data")
    scores = [{**point, "losses": None} for point in result["curve"]]  # losses are of each process's own batches
    (folder / f"rank{state.process_index}").write_text(repr((scores, result["dsp"])))
    torch.distributed.destroy_process_group()

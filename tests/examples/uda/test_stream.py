"""Batches are a function of seed and number: whatever was drawn before, and however many workers draw."""

import pytest
import torch
from torch import Tensor

from examples.uda.benchmarks import DomainDataset
from examples.uda.stream import DomainBatches, Shuffle


class Noisy(DomainDataset):
    """Image i is filled with i, its view with i plus noise."""

    def __init__(self, size, views=False):
        super().__init__(list(range(size)), None)
        self.views = views

    def __getitem__(self, index) -> tuple[Tensor | tuple[Tensor, Tensor], int]:
        image = index + 0.1 * torch.rand(3, 2, 2)
        return ((image, image + 100) if self.views else image), index

    def image(self, index):
        raise NotImplementedError


def batches(views=False, **settings):
    return DomainBatches(Noisy(10), Noisy(7, views), **{"batch_size": 4, "seed": 3, **settings})


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))


def tensors(batch):
    return [value for value in vars(batch).values() if value is not None]


def test_every_epoch_is_another_permutation():
    shuffle = Shuffle(size=7, batch_size=3, seed=0)
    drawn = [position for number in range(14) for position in shuffle.positions(number)]
    epochs = [drawn[start : start + 7] for start in range(0, 42, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 3


def test_a_batch_may_be_larger_than_the_data_set():
    assert sorted(Shuffle(size=3, batch_size=9, seed=0).positions(5)) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_a_batch_depends_on_seed_and_number_alone():
    made = batches()
    expected = [made[number] for number in range(6)]
    assert all(same(batches()[number], expected[number]) for number in reversed(range(6)))
    assert not same(batches(seed=4)[2], expected[2])
    assert all(same(a, b) for a, b in zip(batches().iterate(2, 6, workers=0), expected[2:], strict=True))


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # more than the machine has cores
def test_workers_change_nothing():
    expected = [batches()[number] for number in range(1, 5)]
    assert all(same(a, b) for a, b in zip(batches().iterate(1, 5, workers=2), expected, strict=True))


def test_global_random_numbers_are_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(batches().iterate(0, 3, workers=0))
    assert torch.equal(torch.rand(3), expected)


def test_images_labels_and_positions_belong_together():
    batch = batches(views=True)[1]
    assert torch.equal(batch.source_images[:, 0, 0, 0].int(), batch.source_labels.int())
    assert torch.equal(batch.target_images[:, 0, 0, 0].int(), batch.target_positions.int())
    torch.testing.assert_close(batch.target_strong_images, batch.target_images + 100)


def test_processes_share_a_batch():
    whole = batches()[3]
    shares = [batches(process=process, processes=2)[3] for process in range(2)]
    together = torch.cat([share.target_positions for share in shares])
    assert sorted(together.tolist()) == sorted(whole.target_positions.tolist())
    assert all(len(share.source_images) == 2 for share in shares)


def test_processes_must_divide_the_batch():
    try:
        batches(processes=3)
    except ValueError as error:
        assert "batch_size 4" in str(error)
        assert "3 processes" in str(error)
    else:
        raise AssertionError("accepted")

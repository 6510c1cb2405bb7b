"""Which classes the estimate keeps, and what the first epoch knows."""

import pytest
import torch

from cmkd import CMKD, PartialSet, estimate_classes
from tests.messages import names


def predictions(*counts: int):
    return torch.cat([torch.full((count,), number) for number, count in enumerate(counts)] or [torch.empty(0).long()])


def test_fourteen_predictions_keep_a_class_and_thirteen_do_not():
    assert estimate_classes(predictions(14, 13, 0, 200), classes=5).tolist() == [True, False, False, True, False]
    assert estimate_classes(predictions(2, 1), classes=2, min_count=2).tolist() == [True, False]


def test_scattered_predictions_rule_nothing_out():
    assert estimate_classes(predictions(13, 0, 13), classes=3).tolist() == [True, True, True]
    assert estimate_classes(predictions(), classes=3).tolist() == [True, True, True]
    partial = PartialSet(3)
    partial.update(None)
    partial.update(predictions(20, 1, 1))
    partial.update(predictions(7, 8, 7))
    assert partial.kept.tolist() == [True, True, True]
    partial.update(predictions(1, 20, 1))
    assert partial.kept.tolist() == [False, True, False]


def test_the_first_epoch_has_all_classes():
    partial = PartialSet(3)
    assert partial.never_updated
    partial.update(None)
    assert partial.kept.tolist() == [True, True, True]
    assert not partial.never_updated
    partial.update(predictions(20, 2, 20))
    assert partial.kept.tolist() == [True, False, True]
    partial.update(predictions(20, 20, 2))  # a class may come back
    assert partial.kept.tolist() == [True, True, False]


def test_appendix_k_s_numbers():
    partial = PartialSet(65)
    assert (partial.min_count, partial.classification_weight, partial.transfer_weight) == (14, 0.5, 0.1)


def test_a_resumed_run_goes_on_with_the_estimate():
    partial = PartialSet(3, min_count=1)
    partial.update(None)
    partial.update(predictions(1, 0, 1))
    resumed = PartialSet(3, min_count=1)
    resumed.load_state_dict(partial.state_dict())
    assert resumed.kept.tolist() == [True, False, True]
    assert not resumed.never_updated


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=names("classes=2", 2)):
        estimate_classes(predictions(9, 9, 9), classes=2)
    with pytest.raises(ValueError, match=names("int64", torch.float32, (3, 2))):
        estimate_classes(torch.zeros(3, 2), classes=2)
    with pytest.raises(ValueError, match=names("classes", 0)):
        PartialSet(0)


def test_the_target_is_looked_at_every_500_iterations_or_once_a_pass():
    def due(refresh_every: int | None) -> list[int]:
        objective = CMKD(torch.nn.Identity(), partial_set=PartialSet(3, refresh_every=refresh_every))
        return [t for t in range(1200) if objective.refresh_due(t, iterations_per_epoch=400, max_iterations=1200)]

    assert due(500) == [0, 500, 1000]
    assert due(None) == [0, 400, 800]
    assert PartialSet(3).refresh_every == 500


def test_an_epoch_without_iterations_is_refused():
    with pytest.raises(ValueError, match=names("refresh_every", 0)):
        PartialSet(3, refresh_every=0)

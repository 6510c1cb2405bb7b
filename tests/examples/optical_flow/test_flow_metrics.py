"""EPE and Fl-all against loops over pixels, and the sequence loss against its formula."""

import math

import pytest
import torch

from examples.optical_flow.flow_metrics import FlowMeter
from examples.optical_flow.sequence_loss import sequence_loss
from tests.messages import names


def random_pair(seed, height=5, width=7):
    draw = torch.Generator().manual_seed(seed)
    truth = 60 * torch.randn(2, height, width, generator=draw)
    prediction = truth + 4 * torch.randn(2, height, width, generator=draw)
    valid = torch.rand(height, width, generator=draw) < (0.3 if seed % 2 else 0.8)
    return prediction, truth, valid


def by_loops(pairs):
    """EPE over all pixels, mean of the pairs' own EPE, per cent of outliers."""
    errors, bad, images = [], [], []
    for prediction, truth, valid in pairs:
        own = []
        for y, x in valid.nonzero().tolist():
            u, v = truth[:, y, x].tolist()
            a, b = prediction[:, y, x].tolist()
            own.append(math.hypot(a - u, b - v))
            bad.append(own[-1] > 3 and own[-1] / math.hypot(u, v) > 0.05)
        errors += own
        images.append(sum(own) / len(own))
    return sum(errors) / len(errors), sum(images) / len(images), 100 * sum(bad) / len(bad)


def test_scores_are_those_of_loops_over_pixels():
    pairs = [random_pair(seed) for seed in range(4)]
    meter = FlowMeter()
    for prediction, truth, valid in pairs:
        meter.add(prediction, truth.where(valid, torch.tensor(math.nan)), valid)  # unknown flow must not matter
    scores = meter.scores()
    assert (scores.epe, scores.epe_per_image, scores.fl_all) == pytest.approx(by_loops(pairs), rel=1e-9)
    assert 0 < scores.fl_all < 100
    assert abs(scores.epe - scores.epe_per_image) > 1e-3


@pytest.mark.parametrize(("truth", "error", "outlier"), [(10, 3.5, True), (10, 2.9, False), (100, 4.5, False)])
def test_an_outlier_is_over_three_pixels_and_over_five_per_cent(truth, error, outlier):
    flow = torch.zeros(2, 1, 1)
    flow[0] = truth
    meter = FlowMeter()
    meter.add(flow + torch.tensor([0.0, error])[:, None, None], flow, torch.ones(1, 1, dtype=torch.bool))
    assert meter.scores().fl_all == 100 * outlier


def test_bad_shapes_and_pairs_without_truth_are_refused():
    with pytest.raises(ValueError, match=names((2, 4, 6))):
        FlowMeter().add(torch.zeros(2, 4, 5), torch.zeros(2, 4, 6), torch.ones(4, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match=names("pixel")):
        FlowMeter().add(torch.zeros(2, 4, 5), torch.zeros(2, 4, 5), torch.zeros(4, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match=names("pair")):
        FlowMeter().scores()


def test_sequence_loss_is_its_formula():
    draw = torch.Generator().manual_seed(0)
    flow = torch.randn(2, 2, 3, 4, generator=draw, dtype=torch.float64)
    valid = torch.rand(2, 3, 4, generator=draw) < 0.6
    flow[0, :, 0, 0] = 500.0  # too far to count
    valid[0, 0, 0] = True
    predictions = [torch.randn(2, 2, 3, 4, generator=draw, dtype=torch.float64) for _ in range(3)]
    expected = 0.0
    for weight, prediction in zip((0.64, 0.8, 1.0), predictions, strict=True):
        for b, y, x in valid.nonzero().tolist():
            if (b, y, x) != (0, 0, 0):
                expected += weight * (prediction[b, :, y, x] - flow[b, :, y, x]).abs().sum().item() / (2 * 2 * 3 * 4)
    flow = flow.where(valid[:, None], torch.tensor(math.inf, dtype=torch.float64))
    loss = sequence_loss(predictions, flow, valid, gamma=0.8)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match=names("valid", (2, 4, 3))):
        sequence_loss(predictions, flow, valid.transpose(1, 2), gamma=0.8)


def test_unknown_flow_gives_no_gradient():
    prediction = torch.zeros(1, 2, 2, 2, requires_grad=True)
    flow = torch.full((1, 2, 2, 2), math.inf)
    flow[..., 0, 0] = 1.0
    valid = torch.zeros(1, 2, 2, dtype=torch.bool)
    valid[..., 0, 0] = True
    sequence_loss([prediction], flow, valid, gamma=0.8).backward()
    assert prediction.grad.count_nonzero() == 2
    assert prediction.grad.isfinite().all()

"""Mask2Former cut in two is the library's network, and its weighted loss the library's loss where weights are 1."""

import copy

import pytest
import torch
from transformers import Mask2FormerForUniversalSegmentation

from examples.segmentation.mask2former import (
    Mask2Former,
    class_masks,
    load_mask2former,
    save_tiny_mask2former,
    tiny_config,
)
from tests.messages import names

CLASSES = 5


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Mask2FormerForUniversalSegmentation(tiny_config(CLASSES)).eval()


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 3, (2, 4, 4), generator=generator).repeat_interleave(16, 1).repeat_interleave(16, 2)
    labels[0, :5] = 255
    return torch.randn(2, 3, 64, 64, generator=generator), labels


def test_the_parts_make_the_library_s_network(network, batch):
    student = Mask2Former(network).eval()
    output, reference = student.head(student.encoder(batch[0])), network(batch[0])
    assert torch.equal(output.classes[-1], reference.class_queries_logits)
    assert torch.equal(output.masks[-1], reference.masks_queries_logits)


def test_predictions_are_the_library_s(network, batch):
    scores = network(batch[0])
    masks = torch.nn.functional.interpolate(scores.masks_queries_logits, (64, 64), mode="bilinear").sigmoid()
    classes = scores.class_queries_logits.softmax(dim=-1)[..., :-1]
    wanted = torch.einsum("bqc,bqhw->bchw", classes, masks)  # post_process_semantic_segmentation's
    log_p = Mask2Former(network).eval()(batch[0])
    torch.testing.assert_close(log_p.exp(), wanted / wanted.sum(dim=1, keepdim=True), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(log_p.exp().sum(dim=1), torch.ones(2, 64, 64))


def own_loss(network, images, labels):
    masks, classes = zip(*(class_masks(image) for image in labels), strict=True)
    torch.manual_seed(5)
    return network(images, mask_labels=list(masks), class_labels=list(classes)).loss


def weighted_loss(student, images, labels, weights=None):
    output = student.head(student.encoder(images))
    torch.manual_seed(5)
    return student.loss(output, labels, weights)


def test_without_weights_the_loss_is_the_library_s(network, batch):
    got = weighted_loss(Mask2Former(network).eval(), *batch)
    torch.testing.assert_close(got, own_loss(network, *batch), rtol=1e-5, atol=0)


def test_the_loss_is_linear_in_the_weights(network, batch):
    student = Mask2Former(network).eval()
    weights = torch.rand(batch[1].shape, generator=torch.Generator().manual_seed(2))
    whole = weighted_loss(student, *batch)
    parts = weighted_loss(student, *batch, weights) + weighted_loss(student, *batch, 1 - weights)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=0)
    torch.testing.assert_close(weighted_loss(student, *batch, 0.3 + 0 * weights), 0.3 * whole, rtol=1e-4, atol=0)
    assert not torch.isclose(weighted_loss(student, *batch, weights), weights.mean() * whole, rtol=1e-4)


def test_pixels_of_weight_0_send_no_gradient(network, batch):
    student = Mask2Former(network).eval()
    images, labels = batch
    labels = torch.zeros_like(labels)  # one mask an image, so that the second image's has weight 0
    weights = torch.ones(labels.shape)
    weights[1] = 0
    output = student.head(student.encoder(images))
    output = type(output)(*([tensor.detach().requires_grad_() for tensor in part] for part in output))
    student.loss(output, labels, weights).backward()
    for tensor in (*output.classes, *output.masks):
        assert tensor.grad[0].abs().sum() > 0
        assert tensor.grad[1].abs().sum() == 0


def test_a_delta_is_made_for_the_published_names(network):
    student = Mask2Former(network)
    names = dict(student.published.named_parameters())
    assert "model.pixel_level_module.encoder.swin.embeddings.patch_embeddings.projection.weight" in names
    assert {id(weight) for weight in names.values()} == {id(weight) for weight in student.parameters()}
    copied = copy.deepcopy(student)
    ids = {id(weight) for weight in copied.parameters()}
    assert {id(weight) for weight in copied.published.parameters()} == ids
    assert not ids & {id(weight) for weight in student.parameters()}


def test_checkpoints_are_loaded_from_a_folder(tmp_path):
    save_tiny_mask2former(tmp_path, CLASSES)
    assert len(list(load_mask2former(str(tmp_path), CLASSES).parameters())) > 100
    with pytest.raises(ValueError, match=names(5, 19)):
        load_mask2former(str(tmp_path), 19)

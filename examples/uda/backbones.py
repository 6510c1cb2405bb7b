"""Pretrained image encoders by architecture and weights: open_clip's, timm's of ImageNet, and the two small ones."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cmkd import TextTeacher, load_open_clip, prompt_order
from examples.experiment.settings import SettingsError
from examples.small_clip import pretrained_clip, tokenize
from examples.uda import svhn_cnn
from examples.uda.distorted_digits import DistortedPretraining
from examples.uda.mobilenet import FEATURES, MEAN, STD, load_mobilenet
from examples.uda.settings import Settings
from examples.uda.svhn_cnn import load_svhn
from examples.uda.text_embedding_teacher import text_embedding_teacher
from examples.uda.transforms import IMAGENET_MEAN, IMAGENET_STD

CACHE = Path(".cache")

DIGIT_VIEW_STATISTICS = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
"""Digit views come normalised to [-1, 1]."""

MOBILENET_IMAGE_SIZE = 96
"""Half the time of PACS' 128 px on a CPU."""

TIMM = {
    ("RN50", "imagenet1k"): "resnet50.tv_in1k",
    ("RN101", "imagenet1k"): "resnet101.tv_in1k",
    ("ViT-B-16", "imagenet1k"): "vit_base_patch16_224.augreg_in1k",
    ("ViT-B-16", "imagenet21k"): "vit_base_patch16_224.augreg_in21k",
    ("DeiT-S-16", "imagenet1k"): "deit_small_patch16_224.fb_in1k",  # CDTrans's
    ("DeiT-B-16", "imagenet1k"): "deit_base_patch16_224.fb_in1k",  # CDTrans's and PMTrans's
}


@dataclass(frozen=True)
class Backbone:
    """A pretrained encoder and what comes with it.

    Attributes:
        encoder: images (B, 3, S, S) to features (B, D).
        feature_dim: D.
        mean: of each channel of its images.
        std: of each channel.
        image_size: S.
        teacher: features (B, D) to logits of the task's classes (B, C); None for an ImageNet encoder without one.
        head: the student's own head, features to the task's logits, where it is pretrained; None for a fresh one.
        classifier: features to logits of the classes of its pretraining, for App. E's prototypes; None for a CLIP.
    """

    encoder: nn.Module
    feature_dim: int
    mean: Sequence[float]
    std: Sequence[float]
    image_size: int
    teacher: nn.Module | None = None
    head: nn.Module | None = None
    classifier: nn.Module | None = None


def load_backbone(settings: Settings, class_names: Sequence[str], root: Path) -> Backbone:
    """Load the encoder that the settings name, with the teacher that it has without looking at images.

    Args:
        settings: backbone, weights, teacher and prompt.
        class_names: of the benchmark, in the order of the labels.
        root: folder of the data, where the small MobileNet's weights lie too.
    """
    names = prompt_names(settings, class_names)
    if settings.backbone == "small_clip":
        return _small_clip(names, settings)
    if settings.backbone == "mobilenet_v2":
        return _mobilenet(names, settings, root)
    if settings.backbone == "svhn_cnn":
        return _svhn(root)
    if settings.weights.startswith("imagenet"):
        return _timm(settings)
    clip = load_open_clip(
        settings.backbone, pretrained=settings.weights, class_names=names, templates=prompt_template(settings)
    )
    return Backbone(clip.encoder, clip.feature_dim, clip.mean, clip.std, clip.image_size[0], teacher=clip.teacher)


def prompt_names(settings: Settings, class_names: Sequence[str]) -> list[str]:
    """The names in the order in which their prompts stand beside the labels.

    DomainNet's prompts are out of order in the released code; all others are in order.
    """
    order = settings.resolved_preset().domainnet_class_order if settings.benchmark == "domainnet" else "folder"
    return prompt_order(class_names, order)


def prompt_template(settings: Settings) -> str:
    """The settings' own template, else the preset's for this benchmark."""
    preset = settings.resolved_preset()
    if settings.prompt is not None:
        return settings.prompt
    if settings.benchmark.startswith("digits"):
        return preset.prompt_digits
    return preset.prompt_office_home if settings.benchmark.startswith("office_home") else preset.prompt


def _timm(settings: Settings) -> Backbone:
    import timm

    key = (settings.backbone, settings.weights)
    if key not in TIMM:
        raise SettingsError(f"no {settings.weights} weights for {settings.backbone}; there are {sorted(TIMM)}")
    model = timm.create_model(TIMM[key], pretrained=True)
    backbone = from_timm(model)
    if settings.resolved_preset().imagenet_normalisation == "imagenet":
        return replace(backbone, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return backbone


def from_timm(model: Any) -> Backbone:
    """Take a timm model apart into encoder and classifier."""
    config = model.pretrained_cfg
    classifier = model.get_classifier()
    model.reset_classifier(0)
    return Backbone(
        model, model.num_features, config["mean"], config["std"], config["input_size"][1], classifier=classifier
    )


def _mobilenet(names: Sequence[str], settings: Settings, root: Path) -> Backbone:
    network = load_mobilenet(root)
    teacher = text_embedding_teacher(network, root, list(names)) if settings.teacher == "text_embeddings" else None
    return Backbone(
        network.encoder, FEATURES, MEAN, STD, MOBILENET_IMAGE_SIZE, teacher=teacher, classifier=network.classifier
    )


def _svhn(root: Path) -> Backbone:
    network = load_svhn(root)
    teacher = copy.deepcopy(network.head).requires_grad_(False)  # the head's own view, as it was trained
    return Backbone(network.encoder, svhn_cnn.FEATURES, *DIGIT_VIEW_STATISTICS, 32, teacher=teacher, head=network.head)


def _small_clip(names: Sequence[str], settings: Settings) -> Backbone:
    clip = pretrained_clip(DistortedPretraining(), CACHE)
    texts = [prompt_template(settings).format(name) for name in names]
    with torch.no_grad():
        teacher = TextTeacher(clip.encode_text(tokenize(texts)), clip.logit_scale.exp())
    return Backbone(clip.visual, clip.visual.output_dim, *DIGIT_VIEW_STATISTICS, 32, teacher=teacher)

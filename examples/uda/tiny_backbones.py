"""Backbones of a few thousand random weights, of the same kinds as the real ones: for smoke runs and tests."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch

from cmkd import TextTeacher, load_open_clip
from examples.uda.backbones import Backbone, from_timm, load_backbone, prompt_template
from examples.uda.settings import Settings

IMAGE_SIZE = 32
# open_clip knows a model by its file's name, in the whole process
CONFIGS = {kind: Path(__file__).with_name(f"uda-smoke-{kind}.json") for kind in ("vit", "resnet")}


def load_tiny_backbone(settings: Settings, class_names: Sequence[str], root: Path) -> Backbone:
    """Stand in for `load_backbone`: a vision transformer for one, a ResNet for the others; nothing is downloaded."""
    if settings.backbone == "svhn_cnn":  # small enough as it is
        return load_backbone(settings, class_names, root)
    kind = "vit" if settings.backbone.startswith("ViT") else "resnet"
    if settings.weights.startswith("imagenet"):
        return _imagenet(kind, len(class_names), settings)
    if CONFIGS[kind].stem not in open_clip.list_models():
        open_clip.add_model_config(CONFIGS[kind])
    clip = load_open_clip(CONFIGS[kind].stem, class_names=class_names, templates=prompt_template(settings))
    return Backbone(clip.encoder, clip.feature_dim, clip.mean, clip.std, IMAGE_SIZE, teacher=clip.teacher)


def _imagenet(kind: str, classes: int, settings: Settings) -> Backbone:
    sizes: dict[str, Any] = {"img_size": IMAGE_SIZE} if kind == "vit" else {}
    backbone = from_timm(timm.create_model(f"test_{kind}", num_classes=200, **sizes))
    teacher = None
    if settings.teacher == "text_embeddings":
        teacher = TextTeacher(torch.randn(classes, backbone.feature_dim), scale=10.0)
    return Backbone(
        backbone.encoder,
        backbone.feature_dim,
        backbone.mean,
        backbone.std,
        IMAGE_SIZE,
        teacher=teacher,
        classifier=backbone.classifier,
    )

"""Building the network and the method from settings."""

from collections import OrderedDict

from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from cmkd.segmentation import DenseStudent
from examples.experiment.settings import SettingsError
from examples.segmentation.classes import CLASSES
from examples.segmentation.deeplab import DeepLabV2, DilatedHead, build_deeplab
from examples.segmentation.distillation import Distillation
from examples.segmentation.fourier import FourierAdaptation
from examples.segmentation.mask2former import Mask2Former, load_mask2former
from examples.segmentation.scene_objective import SceneObjective, SourceOnly
from examples.segmentation.self_training import SelfTraining
from examples.segmentation.settings import Settings
from examples.segmentation.tuning import prepare


def build_student(settings: Settings) -> DenseStudent:
    """The network as a cell starts: pretrained, fresh parts drawn from torch's generator, frozen by `tuning`."""
    student = _build_network(settings)
    prepare(student, settings.tuning, lora_rank=settings.lora_rank)
    return student


def published(student: DenseStudent) -> nn.Module:
    """The module under whose names the weights are published: what a delta is made for."""
    return student.published if isinstance(student, Mask2Former) else student


def build_objective(settings: Settings, student: DenseStudent) -> SceneObjective:
    """The method. Raises `SettingsError` for "none", which trains nothing."""
    if settings.method == "source_only":
        return SourceOnly()
    if settings.method == "self_training":
        return SelfTraining(
            student,
            momentum=settings.ema_momentum,
            pseudo_threshold=settings.pseudo_threshold,
            ignore_rows=settings.ignore_rows,
        )
    if settings.method == "fda":
        return FourierAdaptation(beta=settings.fda_beta, entropy_weight=settings.fda_entropy)
    if settings.method == "cmkd":
        return Distillation(
            student,
            momentum=settings.ema_momentum,
            source_weight=settings.source_weight,
            cmkd_weight=settings.cmkd_weight,
            ramp_iterations=settings.ramp_iterations,
        )
    raise SettingsError(f"method {settings.method!r} trains nothing")


def _build_network(settings: Settings) -> DenseStudent:
    if settings.network == "mask2former":
        return load_mask2former(settings.weights, len(CLASSES))
    if settings.network == "deeplabv2-tiny":
        backbone = ResNet(Bottleneck, (1, 1, 1, 1), output_stride=8, channels=(8, 16, 32, 64))
        stages = OrderedDict(list(backbone.named_children())[:-2])
        return DeepLabV2(nn.Sequential(stages), DilatedHead(256, len(CLASSES), dilations=(1, 2)))
    if settings.weights not in ("imagenet1k", "none"):
        raise SettingsError(f"weights of {settings.network} must be imagenet1k or none, got {settings.weights!r}")
    return build_deeplab(len(CLASSES), pretrained=settings.weights == "imagenet1k")

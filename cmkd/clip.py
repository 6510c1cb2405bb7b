"""Student and teacher from a pretrained CLIP: its image encoder, and its text tower reduced to class embeddings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmkd.evaluation import eval_mode
from cmkd.open_clip_model import Statistics, fetched, open_clip_model, open_clip_tokenizer
from cmkd.prompts import PHOTO, build_prompts
from cmkd.teacher import TextTeacher

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
PROMPTS_AT_ONCE = 256


@dataclass(frozen=True)
class AdaptableCLIP:
    """The parts of a CLIP model that adaptation uses; the text tower is not kept.

    Attributes:
        encoder: f, which maps images (B, 3, H, W) to features (B, D), before normalisation.
        feature_dim: D.
        teacher: maps features (B, D) to the zero-shot logits (B, C), in the order of the class names.
        mean: means of the three image channels in pretraining, for values from 0 to 1.
        std: standard deviations of the same channels.
        image_size: (height, width) that the encoder was pretrained with.
    """

    encoder: nn.Module
    feature_dim: int
    teacher: TextTeacher
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: tuple[int, int]


def load_open_clip(
    name: str,
    *,
    pretrained: str | Path | None = None,
    class_names: Sequence[str],
    templates: str | Sequence[str] = PHOTO,
    tokenizer: Callable[[list[str]], Tensor] | None = None,
) -> AdaptableCLIP:
    """Load any open_clip model, SigLIP included; requires open_clip_torch.

        clip = load_open_clip("ViT-B-16", pretrained="openai", class_names=["Alarm_Clock", "Backpack"])

    OpenAI's weights were trained with QuickGELU. A tag of OpenAI's weights, or OpenAI's own file (`RN50.pt`, a
    TorchScript archive), gets the `-quickgelu` architecture whatever the name says. Other files do not record this: use
    the name "ViT-B-16-quickgelu" if they hold OpenAI's weights.

    Args:
        name: an architecture of `open_clip.list_models()`: "RN50", "RN101", "ViT-B-16", ...
        pretrained: one of open_clip's tags for `name`, downloaded when needed; a file; or None for random weights.
        class_names: the C class names of the task, in the order of the labels.
        templates: prompt template or ensemble, see `build_prompts`; an ensemble's embeddings are normalised and
            averaged.
        tokenizer: maps N texts to tokens (N, length); open_clip's tokenizer for `name` by default.

    Raises:
        ValueError: if `name` or `pretrained` is unknown, saying what there is, or if the prompts are invalid.
        FileNotFoundError: if the weights or the tokenizer cannot be loaded, saying what to pass instead.
    """
    prompts = build_prompts(class_names, templates)
    encode = open_clip_tokenizer(name) if tokenizer is None else tokenizer
    model, statistics = open_clip_model(name, pretrained)
    with eval_mode(model), torch.no_grad():
        embeddings = _class_embeddings(lambda texts: model.encode_text(encode(texts)), prompts)
    teacher = TextTeacher(embeddings, model.logit_scale.exp(), getattr(model, "logit_bias", None))
    return _adaptable(model.visual, teacher, statistics, model.visual.image_size)


def load_transformers_clip(
    model: Any,
    *,
    class_names: Sequence[str],
    templates: str | Sequence[str] = PHOTO,
    tokenizer: Callable[..., Any] | None = None,
) -> AdaptableCLIP:
    """Load a `CLIPModel` or `SiglipModel`; requires transformers.

        clip = load_transformers_clip("google/siglip-base-patch16-224", class_names=["Alarm_Clock", "Backpack"])

    Args:
        model: a folder, a name on the Hugging Face Hub, or a model in memory, which is not modified; its image encoder
            is then shared.
        class_names: the C class names of the task, in the order of the labels.
        templates: prompt template or ensemble, see `build_prompts`; an ensemble's embeddings are normalised and
            averaged.
        tokenizer: a transformers tokenizer; by default the one of the folder or name.

    Raises:
        ValueError: if the model is of another kind, if it is in memory and no tokenizer is given, or if the prompts are
            invalid.
        FileNotFoundError: if the weights or the tokenizer cannot be loaded, saying what to pass instead.
    """
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise ImportError('transformers is missing; pip install "residual-sparse-training[peft]"') from error
    prompts = build_prompts(class_names, templates)
    source = None if isinstance(model, nn.Module) else str(model)
    if source is not None:
        model = fetched(source, "pass a folder that holds it", lambda: AutoModel.from_pretrained(source))
    if not all(hasattr(model, part) for part in ("vision_model", "get_text_features", "logit_scale")):
        raise ValueError(f"model must be a CLIPModel or SiglipModel, got {type(model).__name__}")
    if tokenizer is None:
        if source is None:
            raise ValueError("tokenizer must be given with a model in memory")
        tokenizer = fetched(
            f"the tokenizer of {source}", "pass tokenizer=", lambda: AutoTokenizer.from_pretrained(source)
        )

    encode, length = tokenizer, model.config.text_config.max_position_embeddings

    def encode_texts(texts: list[str]) -> Tensor:
        tokens = encode(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        features = model.get_text_features(input_ids=tokens["input_ids"])
        return features if isinstance(features, Tensor) else features.pooler_output  # a tensor before transformers 5

    with eval_mode(model), torch.no_grad():
        embeddings = _class_embeddings(encode_texts, prompts)
    teacher = TextTeacher(embeddings, model.logit_scale.exp(), getattr(model, "logit_bias", None))
    encoder = TransformersImageEncoder(model.vision_model, getattr(model, "visual_projection", nn.Identity()))
    statistics = _transformers_statistics(source, siglip=hasattr(model, "logit_bias"))
    return _adaptable(encoder, teacher, statistics, model.config.vision_config.image_size)


class TransformersImageEncoder(nn.Module):
    """The image tower of a transformers CLIP as a plain module: maps images to projected, pooled features."""

    def __init__(self, vision_model: nn.Module, projection: nn.Module) -> None:
        """Join the vision tower and its projection, which is the identity for SigLIP."""
        super().__init__()
        self.vision_model = vision_model
        self.projection = projection

    def forward(self, images: Tensor) -> Tensor:
        """Return features (B, D) of images (B, 3, H, W)."""
        features: Tensor = self.projection(self.vision_model(pixel_values=images).pooler_output)
        return features


def _transformers_statistics(source: str | None, *, siglip: bool) -> Statistics:
    from transformers.image_processing_base import ImageProcessingMixin

    if source is not None:
        try:
            config, _ = ImageProcessingMixin.get_image_processor_dict(source)
            return tuple(config["image_mean"]), tuple(config["image_std"])
        except (OSError, KeyError):
            pass  # no preprocessor_config.json beside the weights: use the defaults of the model family
    return ((0.5,) * 3, (0.5,) * 3) if siglip else (CLIP_MEAN, CLIP_STD)


def _class_embeddings(encode: Callable[[list[str]], Tensor], prompts: list[list[str]]) -> Tensor:
    """Return class embeddings (C, D): the mean of each class's normalised prompt embeddings."""
    texts = [text for ensemble in prompts for text in ensemble]
    chunks = [texts[start : start + PROMPTS_AT_ONCE] for start in range(0, len(texts), PROMPTS_AT_ONCE)]
    directions = torch.cat([F.normalize(encode(chunk), dim=1) for chunk in chunks])
    return directions.view(len(prompts), -1, directions.shape[1]).mean(dim=1)


def _adaptable(
    encoder: nn.Module, teacher: TextTeacher, statistics: Statistics, image_size: int | tuple[int, int]
) -> AdaptableCLIP:
    """Check with one blank image that the encoder fits the teacher."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    dim = teacher.class_embeddings.shape[1]
    with eval_mode(encoder), torch.no_grad():
        features = encoder(torch.zeros(1, 3, height, width))
    if not isinstance(features, Tensor) or features.shape != (1, dim):
        got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"the image encoder must give features (1, {dim}) like the text's, got {got}")
    return AdaptableCLIP(encoder, dim, teacher, *statistics, (height, width))

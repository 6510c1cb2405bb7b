"""A CLIP small enough to pretrain in half a minute: an open_clip config, contrastive pretraining, and a cache."""

import hashlib
import inspect
import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import open_clip
import torch
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from examples import rendered_digits

CONFIG = Path(__file__).with_name("small-clip.json")
open_clip.add_model_config(CONFIG)


class CaptionedImages(Protocol):
    """What a CLIP learns from: `captions`, all different, and images that each show one of them."""

    captions: list[str]

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Images (count, 3, 32, 32) float32 in [-1, 1], and the numbers (count,) int64 of their captions."""


@dataclass(frozen=True)
class Pretraining(ABC):
    """How to pretrain, and on what; the cache knows a model by these settings and the code that uses them."""

    steps: int = 400
    batch: int = 64
    learning_rate: float = 1e-3
    seed: int = 0

    @abstractmethod
    def captioned_images(self) -> CaptionedImages:
        """Render what there is to learn from."""


def pretrained_clip(settings: Pretraining, cache: Path) -> open_clip.CLIP:
    """Return the pretrained model in eval mode, from the cache if these settings were run before."""
    path = cache / f"small-clip-{_fingerprint(settings)}.safetensors"
    torch.manual_seed(settings.seed)
    clip = open_clip.CLIP(**open_clip.get_model_config(CONFIG.stem))
    if path.exists():
        clip.load_state_dict(load_file(path))
    else:
        _pretrain(clip, settings)
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".tmp")
        save_file(clip.state_dict(), unfinished)
        unfinished.rename(path)  # a run that is stopped leaves no half a model
    return clip.eval()


def tokenize(texts: list[str]) -> Tensor:
    """Token numbers (N, context length) int64, from open_clip's own tokenizer."""
    tokens: Tensor = open_clip.get_tokenizer(CONFIG.stem)(texts)
    return tokens


def _pretrain(clip: open_clip.CLIP, settings: Pretraining) -> None:
    captioned = settings.captioned_images()
    tokens = tokenize(captioned.captions)
    optimizer = torch.optim.AdamW(clip.parameters(), lr=settings.learning_rate, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=settings.steps)
    clip.train()
    for _ in track(range(settings.steps), description="Pretraining a small CLIP (once)"):
        images, caption_of = captioned.draw(settings.batch)
        loss = contrastive_loss(clip, images, tokens[caption_of], caption_of)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def contrastive_loss(clip: open_clip.CLIP, images: Tensor, tokens: Tensor, caption_of: Tensor) -> Tensor:
    """CLIP's loss, except that images with the same caption are each other's positives instead of negatives."""
    image_features = clip.encode_image(images, normalize=True)
    text_features = clip.encode_text(tokens, normalize=True)
    logits = clip.logit_scale.exp() * image_features @ text_features.T
    same = (caption_of[:, None] == caption_of[None, :]).float()
    targets = same / same.sum(dim=1, keepdim=True)
    return 0.5 * (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets))


def _fingerprint(settings: Pretraining) -> str:
    files = (__file__, inspect.getfile(type(settings)), rendered_digits.__file__, CONFIG)
    code = [Path(file).read_bytes() for file in files]
    return hashlib.sha256(b"".join([*code, json.dumps(asdict(settings)).encode()])).hexdigest()[:16]

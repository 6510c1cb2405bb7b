"""A CLIP small enough to pretrain in half a minute: an open_clip config, contrastive pretraining, and a cache."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import open_clip
import torch
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from examples import rendered_digits
from examples.rendered_digits import render_digits

CONFIG = Path(__file__).with_name("small-clip.json")
open_clip.add_model_config(CONFIG)


@dataclass(frozen=True)
class Pretraining:
    """How to pretrain; the cache knows a model by these settings and the code that uses them."""

    images: int = 6_400
    steps: int = 400
    batch: int = 64
    learning_rate: float = 1e-3
    seed: int = 0


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
    digits = render_digits(settings.images, settings.seed)
    captions = sorted(set(digits.captions))
    caption_of = torch.tensor([captions.index(caption) for caption in digits.captions])
    tokens = tokenize(captions)
    optimizer = torch.optim.AdamW(clip.parameters(), lr=settings.learning_rate, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=settings.steps)
    clip.train()
    for _ in track(range(settings.steps), description="Pretraining a small CLIP (once)"):
        chosen = torch.randint(settings.images, (settings.batch,))
        images, captioned = digits.images[chosen], caption_of[chosen]
        loss = contrastive_loss(clip, images, tokens[captioned], captioned)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def contrastive_loss(clip: open_clip.CLIP, images: Tensor, tokens: Tensor, captioned: Tensor) -> Tensor:
    """CLIP's loss, except that images with the same caption are each other's positives instead of negatives."""
    image_features = clip.encode_image(images, normalize=True)
    text_features = clip.encode_text(tokens, normalize=True)
    logits = clip.logit_scale.exp() * image_features @ text_features.T
    same = (captioned[:, None] == captioned[None, :]).float()
    targets = same / same.sum(dim=1, keepdim=True)
    return 0.5 * (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets))


def _fingerprint(settings: Pretraining) -> str:
    code = [Path(file).read_bytes() for file in (__file__, rendered_digits.__file__, CONFIG)]
    return hashlib.sha256(b"".join([*code, json.dumps(asdict(settings)).encode()])).hexdigest()[:16]

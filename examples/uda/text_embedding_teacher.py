"""A stand-in for a CLIP teacher: MobileNetV2's features mapped to real CLIP text embeddings, without any PACS label.

It is not CLIP: no image was ever contrasted with a text. The two spaces are connected by names that ImageNet's classes
share with LVIS and Open Images.
"""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmkd.teacher import TextTeacher
from examples.uda.mobilenet import ImageNetMobileNet

FOLDER = "clip_text_embeddings"
VOCABULARIES = (("oid_names.txt", "oid_clip_a+cname.npy"), ("lvis_v1_names.txt", "lvis_v1_clip_a+cname.npy"))
PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
SCALES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)


class RidgeFit(NamedTuple):
    """A map from features to text embeddings, and how well it foretells the name of a class left out.

    Attributes:
        weight: (E, D), to be multiplied with features (B, D).
        accuracy: share of the classes, each left out of the fit once, whose embedding is the nearest to its own name's.
        scale: factor of the cosines under which those names are likeliest.
    """

    weight: Tensor
    accuracy: float
    scale: float


def text_embedding_teacher(network: ImageNetMobileNet, root: Path, class_names: list[str]) -> nn.Sequential:
    """Make a frozen teacher: features (B, 1280) to logits (B, C), `scale * cos(map(features), text of the class)`.

    The map is a ridge regression from the ImageNet classifier's weight vectors, one a class, to the text embedding of
    the same name. Its penalty and the scale are chosen by leaving ImageNet's classes out; no image takes part. Both
    sides are centred: all text embeddings share a large part, which says nothing about the class.

    Args:
        network: the pretrained network; its classifier is read.
        root: folder that holds `clip_text_embeddings`.
        class_names: C names, each in one of the vocabularies.

    Raises:
        FileNotFoundError: if a file of embeddings is missing.
        KeyError: if a class name is in no vocabulary.
    """
    vocabulary = load_text_embeddings(root)
    centre = torch.stack(list(vocabulary.values())).mean(dim=0)
    missing = [name for name in class_names if plain_name(name) not in vocabulary]
    if missing:
        raise KeyError(f"class names without a text embedding in {root / FOLDER}: {', '.join(missing)}")

    rows = network.classifier.weight.detach()[1:]  # the first is "background"
    rows = F.normalize(rows - rows.mean(dim=0), dim=1)
    names = [shared_name(label, vocabulary) for label in network.class_names[1:]]
    kept = [(i, name) for i, name in enumerate(names) if name is not None]
    fit = _best_fit(rows[[i for i, _ in kept]], [name for _, name in kept], vocabulary, centre)

    mapping = nn.Linear(rows.shape[1], len(centre), bias=False)
    mapping.weight.data.copy_(fit.weight)
    classes = torch.stack([vocabulary[plain_name(name)] for name in class_names]) - centre
    return nn.Sequential(mapping, TextTeacher(classes, fit.scale)).requires_grad_(False).eval()


def load_text_embeddings(root: Path) -> dict[str, Tensor]:
    """Embeddings (512,) float32 of length 1 by plain name: Open Images' and LVIS's, prompt "a <name>", ViT-B/32."""
    embeddings: dict[str, Tensor] = {}
    for names_file, array_file in VOCABULARIES:
        for path in (root / FOLDER / names_file, root / FOLDER / array_file):
            if not path.is_file():
                raise FileNotFoundError(
                    f"{path} is missing: real CLIP text embeddings, from datasets/metadata of "
                    "github.com/facebookresearch/Detic (Apache-2.0), names one a line"
                )
        names = (root / FOLDER / names_file).read_text().splitlines()
        vectors = torch.from_numpy(np.load(root / FOLDER / array_file)).float()
        for name, vector in zip(names, vectors, strict=True):
            embeddings.setdefault(plain_name(name), F.normalize(vector, dim=0))
    return embeddings


def plain_name(name: str) -> str:
    """Lower case, no brackets and punctuation: "Bow_(weapon)" is "bow"."""
    return " ".join(re.sub(r"[^a-z0-9]+", " ", re.sub(r"\(.*?\)", "", name.lower())).split())


def shared_name(label: str, vocabulary: dict[str, Tensor]) -> str | None:
    """The first synonym of an ImageNet label that is in the vocabulary, or else the first last word that is.

    "African elephant, Loxodonta africana" gives "elephant".
    """
    synonyms = [plain_name(synonym) for synonym in label.split(",")]
    candidates = [*synonyms, *(synonym.split()[-1] for synonym in synonyms if synonym)]
    return next((name for name in candidates if name in vocabulary), None)


def _best_fit(rows: Tensor, names: list[str], vocabulary: dict[str, Tensor], centre: Tensor) -> RidgeFit:
    """Fit with every penalty; keep the one under which most left-out classes are nearest to their own name."""
    distinct = sorted(set(names))
    texts = torch.stack([vocabulary[name] for name in distinct]) - centre
    labels = torch.tensor([distinct.index(name) for name in names])
    fits = [_fit(rows, texts, labels, penalty) for penalty in PENALTIES]
    return max(fits, key=lambda fit: fit.accuracy)


def _fit(rows: Tensor, texts: Tensor, labels: Tensor, penalty: float) -> RidgeFit:
    """Ridge regression in its dual form, with every class left out in turn in closed form."""
    rows, targets = rows.double(), texts[labels].double()
    kernel = rows @ rows.T
    inverse = torch.linalg.inv(kernel + penalty * torch.eye(len(rows), dtype=rows.dtype))
    influence = kernel @ inverse
    own = influence.diagonal()[:, None]
    left_out = (influence @ targets - own * targets) / (1 - own)

    cosines = F.normalize(left_out, dim=1) @ F.normalize(texts.double(), dim=1).T
    accuracy = float((cosines.argmax(dim=1) == labels).double().mean())
    scale = min(SCALES, key=lambda s: float(F.cross_entropy(s * cosines, labels)))
    weight = targets.T @ inverse @ rows
    return RidgeFit(weight.float(), accuracy, scale)

"""The following process: it knows the store and the first weights, and nothing else about the trainer."""

import hashlib
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor

from examples.weight_sync.language_model import generated_model, load_stories
from examples.weight_sync.text import greedy
from rst.sync import Follower

GENERATED = 24  # tokens


def serve(store: str, stories: Path | None, connection: Connection) -> None:
    """At each message: bring the model to the published step, generate, and answer what it is then.

    Answers are `(step, sha256 of all weights, tokens)`; a message of False ends it.
    """
    torch.set_num_threads(1)
    model = load_stories(stories) if stories else generated_model(seed=1)  # other weights: it starts from an anchor
    model.eval()
    follower = Follower(model, store)
    while connection.recv():
        step = follower.update().step
        connection.send((step, sha256(follower.weights), greedy(model, GENERATED)))


def sha256(weights: dict[str, Tensor]) -> str:
    """SHA-256 of every byte of all weights, in the order of their names; independent of rst's own fingerprints."""
    found = hashlib.sha256()
    for name in sorted(weights):
        found.update(name.encode())
        found.update(weights[name].detach().contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()

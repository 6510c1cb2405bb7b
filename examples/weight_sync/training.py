"""The process that trains, and publishes after every optimizer step."""

from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch

from examples.weight_sync.language_model import generated_model, load_stories
from examples.weight_sync.serving import serve, sha256
from examples.weight_sync.sizes import StepSizes, as_bytes, measure
from examples.weight_sync.text import own_samples
from rst.sync import Publisher

BATCH, LENGTH, POOL = 8, 64, 16


@dataclass(frozen=True)
class Step:
    """One step: the loss it started from, its sizes, whether the follower had the same bytes, what it generated."""

    number: int
    loss: float
    sizes: StepSizes
    identical: bool
    tokens: list[int]


def train(
    store: Path, stories: Path | None, steps: int, rate: float, anchor_every: int, on_step: Callable[[Step], None]
) -> list[Step]:
    """Train in pure bfloat16 with AdamW, publish each step, and compare with the process that follows."""
    torch.set_num_threads(1)
    model = load_stories(stories) if stories else generated_model()
    samples = own_samples(model, POOL, LENGTH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    weights = {name: weight.detach() for name, weight in model.named_parameters()}  # a tied one once
    publisher = Publisher(model, store, anchor_every=anchor_every)
    here, there = get_context("spawn").Pipe()
    served = get_context("spawn").Process(target=serve, args=(str(store), stories, there))
    served.start()
    there.close()  # so that a dead follower ends the wait for its answer
    done: list[Step] = []
    try:
        for number in range(1, steps + 1):
            before = as_bytes(weights)
            batch = samples[torch.randperm(POOL)[:BATCH]]
            loss = model(input_ids=batch, labels=batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            published = publisher.publish(step=number)
            here.send(True)
            step, digest, tokens = here.recv()
            sizes = measure(published, before, as_bytes(weights))
            done.append(Step(number, loss.item(), sizes, (step, digest) == (number, sha256(weights)), tokens))
            on_step(done[-1])
        here.send(False)
        served.join()
    finally:
        served.kill()
    return done

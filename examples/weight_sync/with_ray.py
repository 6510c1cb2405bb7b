"""Weight sync between Ray actors: a trainer and two samplers, one of which is killed and restarted.

pip install ray
python -m examples.weight_sync.with_ray
"""

import tempfile
from pathlib import Path
from typing import Any

import ray
import torch
from torch import nn

from rst.sync import Follower, Publisher

STEPS, KILLED_AT, BACK_AT = 6, 3, 5


def network() -> nn.Module:
    """The same weights in every process."""
    torch.manual_seed(0)
    return nn.Linear(256, 256).to(torch.bfloat16)


class Trainer:
    """Trains, and publishes each step."""

    def __init__(self, chain: str) -> None:
        """Start the chain."""
        self.model = network()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.publisher = Publisher(self.model, chain)

    def step(self) -> tuple[int, str, int]:
        """One step; returns its number, the state of all weights, and the bytes published."""
        self.optimizer.zero_grad()
        self.model(torch.randn(8, 256, dtype=torch.bfloat16)).square().mean().backward()
        self.optimizer.step()
        published = self.publisher.publish()
        return published.step, published.state, published.delta_bytes


class Sampler:
    """Has the trainer's weights, and would generate with them."""

    def __init__(self, chain: str) -> None:
        """Start from the first weights."""
        self.follower = Follower(network(), chain)

    def update(self) -> tuple[int, str]:
        """Go to the last step; returns it, and the state, for which every weight is read."""
        step = self.follower.update().step
        self.follower.verify()
        return step, self.follower.state


def main() -> None:
    """Train; after each step every living sampler must have the trainer's bits."""
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    new_trainer: Any = ray.remote(Trainer)
    new_sampler: Any = ray.remote(Sampler)
    with tempfile.TemporaryDirectory() as folder:
        chain = str(Path(folder) / "chain")  # several machines: a URL such as s3://bucket/chain
        trainer = new_trainer.remote(chain)
        ray.get(trainer.__ray_ready__.remote())  # the chain is there
        samplers = [new_sampler.remote(chain) for _ in range(2)]
        for number in range(1, STEPS + 1):
            step, state, size = ray.get(trainer.step.remote())
            if number == KILLED_AT:
                ray.kill(samplers.pop())
            if number == BACK_AT:
                samplers.append(new_sampler.remote(chain))
            found = ray.get([sampler.update.remote() for sampler in samplers])
            if found != [(step, state)] * len(samplers):
                raise SystemExit(f"step {step} is {state}, the samplers have {found}")
            print(f"step {step}: {size:,} bytes, state {state} in {len(samplers)} samplers")
    ray.shutdown()


if __name__ == "__main__":
    main()

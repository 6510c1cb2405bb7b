"""Wherever w0 is kept, training gives the same bits: any weights, selection, schedule, `every`, resumed anywhere."""

from collections.abc import Iterator
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from rst import Linear, ResidualSparseTrainer, RSTConfig
from rst.numerics.exactness import bit_equal
from tests.strategies import FLOAT_DTYPES, vectors

Weights = list[Tensor]


class Scripted(torch.optim.Optimizer):
    """Moves the weights to where it is told."""

    def __init__(self, parameters: Any, script: Iterator[Weights]) -> None:
        super().__init__(parameters, {})
        self._script = script

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if closure is not None:
            closure()
        for weight, target in zip(self.param_groups[0]["params"], next(self._script), strict=True):
            weight.copy_(target)


def module(weights: Weights) -> nn.Module:
    made = nn.Module()
    for number, weight in enumerate(weights):
        made.register_parameter(f"w{number}_bias" if number == 0 else f"w{number}", nn.Parameter(weight.clone()))
    return made


def settings_of(data: st.DataObject) -> dict[str, Any]:
    kinds: list[dict[str, Any]] = [
        {"threshold": data.draw(st.floats(0, 2))},
        {"threshold": Linear(data.draw(st.floats(0, 1)), data.draw(st.floats(0, 1))), "total_steps": 4},
        {"select": "top", "ratio": data.draw(st.floats(0.01, 1))},
        {"select": "bias"},
    ]
    return {**data.draw(st.sampled_from(kinds)), "every": data.draw(st.sampled_from([0, 1, 1, 2, 3]))}


@given(st.data())
def test_every_base_storage_gives_the_same_bits(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(FLOAT_DTYPES))
    sizes = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=3))
    base: Weights = [data.draw(vectors(dtype, size)) for size in sizes]
    steps = [[data.draw(vectors(dtype, size)) for size in sizes] for _ in range(data.draw(st.integers(1, 4)))]
    settings = settings_of(data)
    resumed_at = data.draw(st.integers(0, len(steps) - 1))
    with_closure = data.draw(st.booleans())
    restored_first = data.draw(st.booleans())

    def run(storage: Any, resume: bool) -> tuple[list[Weights], Any]:
        model, seen = module(base), []
        trainer = ResidualSparseTrainer(model, RSTConfig(base_storage=storage, **settings))
        optimizer = Scripted(model.parameters(), iter(steps))
        trainer.attach(optimizer)
        for number in range(len(steps)):
            if resume and number == resumed_at:
                state, weights = trainer.state_dict(), model.state_dict()
                model = module(base)
                trainer = ResidualSparseTrainer(model, RSTConfig(base_storage=storage, **settings))
                if restored_first:
                    model.load_state_dict(weights)
                trainer.load_state_dict(state)
                if not restored_first:
                    model.load_state_dict(weights)
                optimizer = Scripted(model.parameters(), iter(steps[number:]))
                trainer.attach(optimizer)
            optimizer.step((lambda: None) if with_closure else None)
            seen.append([weight.detach().clone() for weight in model.parameters()])
        return seen, trainer.export()

    wanted, delta = run("device", False)
    for storage, resume in ((None, False), ("sparse", False), (None, True), ("sparse", True), ("device", True)):
        found, exported = run(storage, resume)
        for left, right in zip(found, wanted, strict=True):
            assert all(bit_equal(a, b) for a, b in zip(left, right, strict=True)), storage
        assert dict(exported) == dict(delta)

"""The example of weight sync: two processes, the same bytes; and the real model's own words."""

import pytest
import torch

from tests.conftest import SHARED_DATA

pytest.importorskip("transformers")

from examples.weight_sync.language_model import STORIES_FILE, load_stories
from examples.weight_sync.sizes import table
from examples.weight_sync.text import TOKENS_FILE, greedy, read_pieces, to_text
from examples.weight_sync.training import train

STORIES = SHARED_DATA / "stories260K"


@pytest.mark.slow
def test_the_follower_has_the_trainers_bytes_at_every_step(tmp_path) -> None:
    seen = []
    done = train(tmp_path / "chain", None, steps=3, rate=1e-5, anchor_every=2, on_step=seen.append)
    assert seen == done
    assert [step.number for step in done] == [1, 2, 3]
    assert all(step.identical for step in done)
    for step in done:
        assert 0 < step.sizes.changed < step.sizes.weights
        assert step.sizes.packed_delta < step.sizes.absolute < step.sizes.full
    assert len(table([step.sizes for step in done]).splitlines()) == 7


@pytest.mark.skipif(not (STORIES / STORIES_FILE).exists(), reason=f"no {STORIES_FILE} in {STORIES}")
def test_the_converted_stories_model_tells_the_story_that_its_source_tells() -> None:
    torch.set_num_threads(1)
    tokens = greedy(load_stories(STORIES).float(), 40)
    text = to_text(tokens, read_pieces(STORIES / TOKENS_FILE))
    assert text.startswith("Once upon a time, there was a little girl named Lily. She loved to play outside in the")

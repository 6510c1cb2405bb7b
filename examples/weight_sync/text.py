"""Training tokens, and the model's output: greedy continuations from the first token of a story."""

from pathlib import Path

import torch
from torch import Tensor, nn

TOKENS_FILE = "tok512.bin"
_FIRST = 1


@torch.no_grad()
def own_samples(model: nn.Module, count: int, length: int, seed: int = 0) -> Tensor:
    """Sequences that the model itself samples, as a policy does. Shape (count, length), int64."""
    torch.manual_seed(seed)
    tokens = torch.full((count, 1), _FIRST)
    while tokens.shape[1] < length:
        chances = model(tokens).logits[:, -1].float().softmax(-1)
        tokens = torch.cat([tokens, torch.multinomial(chances, 1)], dim=1)
    return tokens


@torch.no_grad()
def greedy(model: nn.Module, length: int) -> list[int]:
    """The likeliest continuation of the first token."""
    tokens = torch.tensor([[_FIRST]])
    while tokens.shape[1] < length:
        tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], dim=1)
    return [int(token) for token in tokens[0, 1:]]


def read_pieces(path: Path) -> list[bytes]:
    """Read a tokenizer of llama2.c: an int32, then for each token a float32 score, its length in int32, its bytes."""
    raw, at, pieces = path.read_bytes(), 4, []
    while at < len(raw):
        length = int.from_bytes(raw[at + 4 : at + 8], "little")
        pieces.append(raw[at + 8 : at + 8 + length])
        at += 8 + length
    return pieces


def to_text(tokens: list[int], pieces: list[bytes] | None) -> str:
    """Words where there is a tokenizer, else the tokens' numbers."""
    if pieces is None:
        return " ".join(map(str, tokens))
    return b"".join(pieces[token] for token in tokens).decode(errors="replace").strip()

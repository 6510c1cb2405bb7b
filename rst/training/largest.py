"""The k largest of very many scores, seen one parameter after another, in O(k) memory."""

from collections.abc import Mapping

import torch
from torch import Tensor


class Largest:
    """The k largest positive scores so far, and where they are."""

    def __init__(self, k: int) -> None:
        """Start empty."""
        self._k = k
        self._starts: list[tuple[str, int]] = []
        self._end = 0
        self._scores = torch.empty(0)
        self._places = torch.empty(0, dtype=torch.int64)

    def add(self, name: str, scores: Tensor) -> None:
        """Consider the scores of one parameter, of any shape. Zeros and NaN are never kept."""
        self._starts.append((name, self._end))
        flat = scores.detach().reshape(-1)
        floor = self._scores.min() if self._scores.numel() == self._k else torch.tensor(0.0)
        places = (flat > floor.to(flat.device, flat.dtype)).nonzero().squeeze(1)
        if places.numel() > self._k:
            places = places[flat[places].topk(self._k, sorted=False).indices]
        all_scores = torch.cat([self._scores, flat[places].float().cpu()])
        all_places = torch.cat([self._places, places.cpu() + self._end])
        if all_scores.numel() > self._k:
            best = all_scores.topk(self._k, sorted=False).indices
            all_scores, all_places = all_scores[best], all_places[best]
        self._scores, self._places = all_scores, all_places
        self._end += flat.numel()

    def positions(self) -> dict[str, Tensor]:
        """Return sorted flat positions by name, int64."""
        found = self._places.sort().values
        cuts = torch.searchsorted(found, torch.tensor([*(start for _, start in self._starts), self._end])).tolist()
        pieces: dict[str, list[Tensor]] = {}
        for (name, start), low, high in zip(self._starts, cuts[:-1], cuts[1:], strict=True):
            pieces.setdefault(name, []).append(found[low:high] - start)
        return {name: torch.unique(torch.cat(parts)) for name, parts in pieces.items()}


class LargestOfEach:
    """The largest positive scores of each parameter, with a fixed count per parameter."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        """Start empty; parameters without a count are ignored."""
        self._each = {name: Largest(count) for name, count in counts.items()}

    def add(self, name: str, scores: Tensor) -> None:
        """Consider the scores of one parameter, as in `Largest.add`."""
        self._each[name].add(name, scores)

    def positions(self) -> dict[str, Tensor]:
        """Return sorted flat positions by name, int64."""
        return {name: found for one in self._each.values() for name, found in one.positions().items()}

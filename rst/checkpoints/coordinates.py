"""Where each weight of a live module lies in its checkpoint files, and back.

What is written uses the names, shapes and positions of the files, which are stable. A transformers module may have
other names, and one tensor for all experts where the files have one each; the tensors of any other module are those of
its files.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from rst.errors import NotCarriedError

Push = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
Spellings = Callable[[str], Iterable[str]]


@dataclass(frozen=True)
class FileTensor:
    """One tensor of the checkpoint files.

    Attributes:
        name: its name in the files.
        sources: names of the module's tensors that hold its elements.
        shape: its shape.
        moved: whether its elements lie elsewhere in the module. If not, it is its only source under another name.
        computed: the operation that computes its elements from the module's, if the module does not hold them.
        view: if moved, stride and offset in its only source, in row-major order, where these describe it completely.
    """

    name: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    moved: bool = False
    computed: str | None = None
    view: tuple[tuple[int, ...], int] | None = None

    def check_laid_out(self) -> None:
        """Raise `NotCarriedError` if it is computed."""
        if self.computed:
            raise NotCarriedError(
                f"the checkpoint files have it as {', '.join(self.sources)}, computed by {self.computed}; a delta "
                f"can only hold the files' own values",
                parameter=self.name,
            )

    def positions_in_source(self, positions: Tensor) -> Tensor:
        """Return the positions of a `view`'s elements in the source; flat positions of both, int64."""
        assert self.view is not None
        strides, offset = self.view
        axes = torch.unravel_index(positions, self.shape)
        return sum(
            (axis * stride for axis, stride in zip(axes, strides, strict=True)), torch.full_like(positions, offset)
        )


@dataclass(frozen=True)
class Coordinates:
    """The map between one module's tensors and those of its checkpoint files.

    Attributes:
        files: the tensors of the files by name; empty if they are the module's own.
        push: computes the files' tensors from the module's, of any dtype; tensors that share sources go through it
            together.
        spellings: the names under which other files of the same model may have a tensor.
    """

    files: Mapping[str, FileTensor]
    push: Push
    spellings: Spellings

    @cached_property
    def by_source(self) -> Mapping[str, list[str]]:
        """Return the names in the files, by name in the module."""
        found: dict[str, list[str]] = {}
        for name, tensor in self.files.items():
            for source in tensor.sources:
                found.setdefault(source, []).append(name)
        return found

    def files_of(self, source: str) -> list[str]:
        """Return the tensors of the files that hold one of the module's; the name itself if it is not in the map."""
        return self.by_source.get(source, [source])

    def is_moved(self, name: str) -> bool:
        """Return whether a tensor of the files has its elements elsewhere in the module."""
        return name in self.files and self.files[name].moved

    def has_own(self, source: str) -> bool:
        """Return whether one tensor of the files holds all elements of one of the module's, in the same order."""
        files = self.files_of(source)
        found = self.files.get(files[0]) if len(files) == 1 else None
        return len(files) == 1 and (found is None or not (found.moved or found.computed))

    def name_in_files(self, source: str) -> str:
        """Return the name in the files of one of the module's tensors; its own if its elements are moved."""
        files = self.files_of(source)
        return files[0] if len(files) == 1 and not self.is_moved(files[0]) else source

    def files_of_all(self, sources: Iterable[str]) -> list[str]:
        """Return the tensors of the files that hold several of the module's, each once."""
        return list(dict.fromkeys(name for source in sources for name in self.files_of(source)))

    def find(self, names: Iterable[str]) -> FileTensor | None:
        """Return the tensor of the files that has one of these names, or else another spelling of one."""
        names = list(names)
        spelled = [other for name in names for other in self.spellings(name)]
        return next((self.files[name] for name in (*names, *spelled) if name in self.files), None)

    def to_files(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """View the module's tensors as those of the files: in the same memory, or copied if no view exists.

        Access to a computed one raises `NotCarriedError`.
        """
        return _FileView(self, tensors) if self.files else tensors

    def places(self, names: Iterable[str]) -> dict[str, list[Any]]:
        """Return where the module holds the files' tensors that are its own under another name, or a view of one.

        Returns:
            By name in the files, `[name in the module, shape, strides, offset]`, as in a trainer's record.
        """
        found = [self.files[name] for name in names if name in self.files]
        views = {one.name: one.view or (_row_major(one.shape), 0) for one in found if one.view or not one.moved}
        return {
            one.name: [one.sources[0], [*one.shape], [*views[one.name][0]], views[one.name][1]]
            for one in found
            if one.name in views and not one.computed and (one.moved or one.sources[0] != one.name)
        }

    def check_one_source(self, name: str) -> None:
        """Raise `NotCarriedError` unless a tensor of the files is made of exactly one of the module's."""
        if len(sources := self.files[name].sources if name in self.files else ()) > 1:
            raise NotCarriedError(
                f"the tensor of the checkpoint files combines {len(sources)} sharded tensors, {', '.join(sources)}; "
                f"gather the model and export the gathered one",
                parameter=name,
            )

    def ties_in_files(self, tied: Mapping[str, str]) -> dict[str, str]:
        """Translate ties (other names of the module's tensors, to the names they go by) to the files' names."""
        pairs = ((self.files_of(alias), self.files_of(owner)) for alias, owner in tied.items())
        return {alias[0]: owner[0] for alias, owner in pairs if len(alias) == len(owner) == 1 and alias != owner}

    def push_group(self, tensor: FileTensor, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Push the `group` of a tensor. Raises `NotCarriedError` if it is computed."""
        tensor.check_laid_out()
        with torch.no_grad():
            return self.push({source: tensors[source].detach() for source in self.group(tensor)})

    def group(self, tensor: FileTensor) -> list[str]:
        """Return the sources of a tensor, and all that share files with them."""
        found = dict.fromkeys(tensor.sources)
        waiting = list(found)
        while waiting:
            for file in self.files_of(waiting.pop()):
                new = [source for source in self.files[file].sources if source not in found]
                found.update(dict.fromkeys(new))
                waiting += new
        return list(found)


def _unchanged(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return tensors


def _no_others(name: str) -> Iterable[str]:
    return ()


PLAIN = Coordinates({}, _unchanged, _no_others)
"""The coordinates of a module whose tensors are those of its files."""


def _row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    return torch.empty(shape, device="meta").stride()


class _FileView(Mapping[str, Tensor]):
    def __init__(self, coordinates: Coordinates, tensors: Mapping[str, Tensor]) -> None:
        self._coordinates, self._tensors = coordinates, tensors
        self._pushed: Mapping[str, Tensor] = {}  # of the last requested group

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._coordinates.files[name]
        if not tensor.moved and not tensor.computed:
            return self._tensors[tensor.sources[0]]
        if tensor.view is not None:
            strides, offset = tensor.view
            return self._tensors[tensor.sources[0]].detach().contiguous().as_strided(tensor.shape, strides, offset)
        if name not in self._pushed:
            self._pushed = self._coordinates.push_group(tensor, self._tensors)
        return self._pushed[name]

    def __contains__(self, name: object) -> bool:
        return name in self._coordinates.files

    def __iter__(self) -> Iterator[str]:
        return iter(self._coordinates.files)

    def __len__(self) -> int:
        return len(self._coordinates.files)

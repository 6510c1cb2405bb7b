"""The loop at the heart of every export: pairs of tensors in, one `SparseDelta` out."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from torch import Tensor

from rst.checkpoints.checkpoint import Checkpoint
from rst.checkpoints.read_ahead import read_ahead
from rst.delta.parameter_delta import (
    ParameterDelta,
    WantedOp,
    check_carried,
    check_like,
    check_no_nan,
    check_op,
    is_judged,
)
from rst.delta.sparse_delta import BaseIdentity, CoordinatesName, SparseDelta
from rst.errors import naming_file
from rst.numerics.exactness import bit_equal, bytes_of_tensor
from rst.operations.forms import express, smallest_op

Progress = Callable[[int, int], None]


def shifted(on_progress: Progress | None, start: int, total: int) -> Progress | None:
    """Return progress of a part that starts after `start` bytes, as progress of the whole of `total` bytes."""
    return on_progress and (lambda done, _: on_progress(start + done, total))


@dataclass(frozen=True)
class Extraction:
    """The tensors to compare, and what to keep of them.

    Attributes:
        base: w0 by name.
        tuned: wt by name.
        names: tensors to compare, in this order.
        whole: tensors stored whole, changed or not.
        buffers: tensors that are not parameters: stored whole if they changed, never selected by `threshold`.
        tied: other names of the same tensors.
        threshold: tau of Eq. 17; None keeps every changed bit.
        ties: number of changes equal to `threshold` that are kept, the first of each parameter; None without a share.
        left: parameters that stay as the base has them.
        identity: the base's name and revision.
        config: settings to record, in JSON types.
        op: how to store each parameter, as in `ParameterDelta`; "smallest" finds out once all are compared.
        kept: tensors recorded even if they did not change, because the base has them tied and the tuned model does not.
        source: origin of the tuned weights, for messages.
        coordinates: the coordinates of names and positions, as in `SparseDelta`.
        model_config: the tuned model's settings to record, as in `SparseDelta`.
    """

    base: Mapping[str, Tensor]
    tuned: Mapping[str, Tensor]
    names: Sequence[str]
    whole: Collection[str] = ()
    buffers: Collection[str] = ()
    tied: Mapping[str, str] = field(default_factory=dict)
    threshold: float | None = None
    ties: Mapping[str, int] | None = None
    left: Collection[str] = ()
    identity: BaseIdentity = field(default_factory=BaseIdentity)
    config: Mapping[str, Any] = field(default_factory=dict)
    op: WantedOp = "add"
    kept: Collection[str] = ()
    source: str | None = None
    coordinates: CoordinatesName | None = None
    model_config: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Raise `ConfigError` for an unknown operation."""
        check_op(self.op, get_args(WantedOp))

    def run(self, on_progress: Progress | None = None) -> SparseDelta:
        """Compare tensor by tensor. Raises as `ParameterDelta.between` does, before anything is written."""
        parameters: dict[str, ParameterDelta] = {}
        dense: dict[str, Tensor] = {}
        op = "step" if self.op == "smallest" else self.op
        weights = done = 0
        total = sum(map(self.nbytes, self.names))
        for name in read_ahead(self.names, self.base, self.tuned):
            tuned = self.tuned[name].detach()
            with naming_file(self.source):
                if self._passes_through(name, tuned):
                    weights += 0 if name in self.buffers else tuned.numel()
                elif name in self.whole or name in self.buffers:
                    self._check_whole(name, tuned)
                    dense[name] = tuned.clone().contiguous()
                else:
                    weights += tuned.numel()
                    ties = None if self.ties is None else self.ties.get(name, 0)
                    change = ParameterDelta.between(name, self.base[name], tuned, self.threshold, op, ties=ties)
                    if change.nnz or name in self.kept:
                        parameters[name] = change
            self.release(name)
            done += bytes_of_tensor(tuned)
            if on_progress:
                on_progress(done, total)
        self.check_unchanged()
        delta = SparseDelta(
            parameters=parameters,
            dense=dense,
            buffers=frozenset(dense.keys() & set(self.buffers)),
            tied={alias: owner for alias, owner in self.tied.items() if owner in parameters or owner in dense},
            base=BaseIdentity(self.identity.name, self.identity.revision, weights),
            config=dict(self.config),
            coordinates=self.coordinates,
            model_config=self.model_config,
        )
        return self.in_smallest_form(delta) if self.op == "smallest" else delta

    def in_smallest_form(self, delta: SparseDelta) -> SparseDelta:
        """Express the delta of these tensors by the operation with which it packs smallest; w0 is read once more."""
        op = smallest_op(self._with_base(delta), delta.nnz, self.source)
        parameters = {name: express(name, change, w0, op, self.source) for name, change, w0 in self._with_base(delta)}
        return replace(delta, parameters=parameters)

    def _with_base(self, delta: SparseDelta) -> Iterator[tuple[str, ParameterDelta, Tensor]]:
        for name in read_ahead([*delta], self.base):
            yield name, delta[name], self.base[name].detach()
            self.release(name)

    def check_unchanged(self) -> None:
        """Raise `CheckpointError` if a file was written to since it was opened, so that the data read may be mixed."""
        for weights in (self.base, self.tuned):
            if isinstance(weights, Checkpoint):
                weights.check_unchanged()

    def nbytes(self, name: str) -> int:
        """Return the bytes of a tuned tensor."""
        return bytes_of_tensor(self.outline(name))

    def outline(self, name: str) -> Tensor:
        """Return a tensor with the dtype and shape of a tuned one, whose values must not be read."""
        return self.tuned.outline(name) if isinstance(self.tuned, Checkpoint) else self.tuned[name]

    def parameters(self) -> list[str]:
        """Return the names of the tensors that are compared weight by weight."""
        others = {*self.whole, *self.buffers}
        return [name for name in self.names if name not in others]

    def pair(self, name: str) -> tuple[Tensor, Tensor]:
        """Return w0 and wt of one name. Raises `ParameterMismatchError` if shapes or dtypes differ."""
        base, tuned = self.base[name].detach(), self.tuned[name].detach()
        with naming_file(self.source):
            check_like(name, tuned, base)
        return base, tuned

    def release(self, name: str) -> None:
        """Release the memory of one name's tensors, if they are mapped from files."""
        for weights in (self.base, self.tuned):
            if isinstance(weights, Checkpoint):
                weights.release(name)

    def _passes_through(self, name: str, tuned: Tensor) -> bool:
        """Return whether a tensor is not stored; an unchanged one may be of any kind, as it is not used."""
        if name in self.left:
            return True
        # Tensors compared weight by weight are read there; reading a file's tensor twice would cost time.
        if name in self.whole or (name not in self.buffers and is_judged(tuned)):
            return False
        return bit_equal(self.base[name], tuned)

    def _check_whole(self, name: str, tuned: Tensor) -> None:
        """Check a tensor that will be stored whole."""
        if name not in self.whole:
            check_like(name, tuned, self.base[name])
        check_carried(name, tuned)
        check_no_nan(name, tuned)

"""The sparse delta, a value that turns one base model into one tuned model."""

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from rst.delta.parameter_delta import Op, ParameterDelta, stored_op
from rst.errors import ParameterMismatchError, RSTWarning
from rst.numerics.exactness import RESIDUAL_DTYPES, bit_equal
from rst.numerics.fingerprint import digest, digest_text
from rst.printable import printable

if TYPE_CHECKING:
    from rst.live.apply import PreparedDelta

Encoding = Literal["coo", "packed"]
CoordinatesName = Literal["checkpoint", "module"]
_WIDEST = 200  # the most characters in a column


@dataclass(frozen=True)
class BaseIdentity:
    """The base model's name and revision where known, and how many of its weights were compared.

    `quantized` says how it was quantised, if the delta was trained beside quantised layers.
    """

    name: str | None = None
    revision: str | None = None
    weights: int = 0
    quantized: str | None = None


@dataclass(frozen=True, eq=False)
class SparseDelta(Mapping[str, ParameterDelta]):
    """A mapping from parameter name to `ParameterDelta`, and the tensors that are stored whole.

    Attributes:
        parameters: the changed parameters; unchanged ones are absent.
        dense: the tensors stored whole: modules saved whole, buffers that changed, and what the base lacks.
        buffers: the names in `dense` that are buffers.
        tied: maps the other names of a parameter to its name in `parameters` or `dense`.
        base: the identity of the base model.
        config: the settings that the delta was made with, in JSON types.
        coordinates: whether the names, shapes and positions are those of the base's checkpoint files, or those of a
            live module, which may differ (see `rst.checkpoints.coordinates`). None if that is not known.
        model_config: the tuned model's `config.json`, if it is known and the base's may differ. A merged folder gets it
            (number of labels and their names, vocabulary, architecture).
    """

    parameters: Mapping[str, ParameterDelta]
    dense: Mapping[str, Tensor] = field(default_factory=dict)
    buffers: frozenset[str] = frozenset()
    tied: Mapping[str, str] = field(default_factory=dict)
    base: BaseIdentity = field(default_factory=BaseIdentity)
    config: Mapping[str, Any] = field(default_factory=dict)
    coordinates: CoordinatesName | None = None
    model_config: Mapping[str, Any] | None = None

    def __getitem__(self, name: str) -> ParameterDelta:
        """Return the change of one parameter."""
        return self.parameters[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the changed parameters."""
        return iter(self.parameters)

    def __len__(self) -> int:
        """Return the number of changed parameters."""
        return len(self.parameters)

    @property
    def nnz(self) -> int:
        """The number of changed weights, without the tensors stored whole."""
        return sum(change.nnz for change in self.parameters.values())

    @property
    def op(self) -> Op:
        """The meaning of the values: "add", "replace" or "step". Dtypes without residuals have "replace" for "add".

        Raises:
            ParameterMismatchError: the parameters mix operations.
        """
        ops = {change.op for change in self.parameters.values()}
        op: Op = "add" if "add" in ops or not ops else min(ops)
        if any(change.op != stored_op(op, change.dtype) for change in self.parameters.values()):
            raise ParameterMismatchError(
                f"the parameters mix the operations {sorted(ops)}; rst.convert converts them to a single one"
            )
        return op

    @property
    def density(self) -> float:
        """The changed share of the base's compared weights, in [0, 1]."""
        return self.nnz / self.base.weights if self.base.weights else 0.0

    def dsp(self) -> int:
        """Count the downstream parameters (Sec. IV-A): the changed weights, and all weights of modules saved whole."""
        return self.nnz + sum(tensor.numel() for name, tensor in self.dense.items() if name not in self.buffers)

    @property
    def nbytes(self) -> int:
        """The bytes of all arrays in memory."""
        whole = sum(tensor.nbytes for tensor in self.dense.values())
        return whole + sum(change.nbytes for change in self.parameters.values())

    def fingerprint(self) -> str | None:
        """Return one digest of the base tensors that this delta changes; None if one is unknown (after arithmetic)."""
        lines = []
        for name in sorted(self.parameters):
            base = self.parameters[name].base
            if base is None:
                return None
            lines.append(f"{name} {base.whole}")
        return digest_text("\n".join(lines))

    def digest(self) -> str:
        """Return one digest of everything that merging uses: names, ties, and every array."""
        lines = [f"{sorted(self.tied.items())}"]
        for name, change in self.parameters.items():
            arrays = (change.indices, change.values, change.exact_indices, change.overlay)
            digests = " ".join(map(digest, arrays))
            lines.append(f"{name} {change.op} {change.dtype} {change.shape} {change.base} {digests}")
        for name, tensor in self.dense.items():
            lines.append(f"{name} {tensor.dtype} {tuple(tensor.shape)} {digest(tensor)}")
        if self.model_config is not None:
            lines.append(json.dumps(dict(self.model_config), sort_keys=True))
        return digest_text("\n".join(lines))

    def to(self, device: torch.device | str | None = None, *, dtype: torch.dtype | None = None) -> "SparseDelta":
        """Copy to a device, or cast the values for a base in another dtype.

        A cast is not exact, because the residuals and the base are rounded separately, and raises an `RSTWarning`. The
        result has no digests of its base, because that is another base.

        Raises:
            TypeError: `device` is a dtype.
            ParameterMismatchError: the values are steps, or the dtype cannot hold a value.
        """
        if isinstance(device, torch.dtype):
            raise TypeError(
                f"to({device}) does not name a device; to(dtype={device}) casts the values, which is not exact"
            )
        if dtype is not None:
            return self._cast(dtype).to(device)
        if device is None:
            return self
        return replace(
            self,
            parameters={name: change.to(device) for name, change in self.parameters.items()},
            dense={name: tensor.to(device) for name, tensor in self.dense.items()},
        )

    def _cast(self, dtype: torch.dtype) -> "SparseDelta":
        parameters = {}
        for name, change in self.parameters.items():
            try:
                parameters[name] = change.cast(dtype)
            except ParameterMismatchError as error:
                error.parameter = name
                raise
        cast = sum(parameters[name] is not change for name, change in self.parameters.items())
        if cast:
            warnings.warn(
                f"cast {cast} parameters to {dtype}: base plus delta is close to the tuned weights, but not equal "
                f"bit for bit; for an exact delta, export from weights of this dtype",
                RSTWarning,
                stacklevel=3,
            )
        dense = {name: one.to(dtype) if one.dtype in RESIDUAL_DTYPES else one for name, one in self.dense.items()}
        return replace(self, parameters=parameters, dense=dense)

    def names_of(self, name: str) -> list[str]:
        """Return every name of a tensor: the delta's own, then those tied to it."""
        return [name, *(alias for alias, owner in self.tied.items() if owner == name)]

    def sparse_only(self) -> "SparseDelta":
        """Return the residuals alone, without the tensors stored whole, for arithmetic."""
        tied = {alias: name for alias, name in self.tied.items() if name in self.parameters}
        return replace(self, dense={}, buffers=frozenset(), tied=tied, model_config=None)

    def save(self, path: str | os.PathLike[str], encoding: Encoding = "coo") -> None:
        """Write `delta.safetensors`, format 1, atomically. See `rst.delta.file.save`."""
        from rst.delta.file import save

        save(self, path, encoding)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "SparseDelta":
        """Read and validate a file written by `save`, or an adapter folder. See `rst.delta.file.load_delta`."""
        from rst.delta.file import load_delta

        return load_delta(path)

    def prepare(self, module: nn.Module) -> "PreparedDelta":
        """Prepare the delta for a live module, to swap it in and out in O(nnz). See `rst.live.apply.prepare`."""
        from rst.live.apply import prepare

        return prepare(module, self)

    def apply(self, module: nn.Module) -> "PreparedDelta":
        """Change a live module in place, all or nothing; the result's `remove()` restores every byte.

        This raises the same errors as `rst.live.apply.prepare`, before anything is changed.
        """
        return self.prepare(module).apply()

    def summary(self) -> str:
        """Return a plain-text table: changed weights, density and bytes in memory of each tensor, totals, the DSP."""
        rows = [("tensor", "changed", "of", "density", "bytes")]
        for name, change in self.parameters.items():
            rows.append(
                (printable(name), f"{change.nnz:,}", f"{change.numel:,}", f"{change.density:.4%}", f"{change.nbytes:,}")
            )
        for name, tensor in self.dense.items():
            rows.append((printable(name), f"{tensor.numel():,}", f"{tensor.numel():,}", "whole", f"{tensor.nbytes:,}"))
        weights = f"{self.base.weights:,}" if self.base.weights else "?"
        rows.append(("total", f"{self.nnz:,}", weights, f"{self.density:.4%}", f"{self.nbytes:,}"))
        first, *others = (min(max(map(len, column)), _WIDEST) for column in zip(*rows, strict=True))
        lines = [
            "  ".join([name.ljust(first), *(text.rjust(width) for text, width in zip(texts, others, strict=True))])
            for name, *texts in rows
        ]
        return "\n".join([*lines, f"downstream parameters (DSP): {dsp_in_words(self.dsp(), self.nnz)}"])

    def __eq__(self, other: object) -> bool:
        """Compare parameters, whole tensors (bit for bit), ties and base, but not the settings."""
        if not isinstance(other, SparseDelta):
            return NotImplemented
        return (
            dict(self.parameters) == dict(other.parameters)
            and self.dense.keys() == other.dense.keys()
            and all(bit_equal(tensor, other.dense[name]) for name, tensor in self.dense.items())
            and (self.buffers, dict(self.tied), self.base) == (other.buffers, dict(other.tied), other.base)
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """Show sizes, not arrays."""
        whole = f", {len(self.dense)} tensors whole" if self.dense else ""
        return f"SparseDelta({self.nnz} weights in {len(self)} parameters{whole}, {self.nbytes} bytes)"

    def __mul__(self, factor: float) -> "SparseDelta":
        """Scale every residual (task arithmetic). Raises `ParameterMismatchError` if tensors are stored whole."""
        self._refuse_dense("scale")
        return replace(self, parameters={name: change * factor for name, change in self.parameters.items()})

    __rmul__ = __mul__

    def __add__(self, other: "SparseDelta") -> "SparseDelta":
        """Add the residuals of two tasks, or, exactly, the steps of a chain: `self` on its base, `other` on the result.

        Raises:
            ParameterMismatchError: tensors are stored whole, the operations differ, or they are "replace".
        """
        self._refuse_dense("add")
        other._refuse_dense("add")
        total = {}
        for name, change in {**self.parameters, **other.parameters}.items():
            if name in self.parameters and name in other.parameters:
                total[name] = self[name] + other[name]
            else:  # steps stay exact, so they keep their base; residuals are rounded in the same way everywhere
                total[name] = change if change.op == "step" else change * 1.0
        return replace(self, parameters=total, tied={**self.tied, **other.tied})

    def _refuse_dense(self, verb: str) -> None:
        if self.dense:
            names = ", ".join(sorted(self.dense)[:3])
            raise ParameterMismatchError(
                f"cannot {verb}: {len(self.dense)} tensors are stored whole ({names}), which have no residual; "
                "call delta.sparse_only() first"
            )


def dsp_in_words(dsp: int, changed: int) -> str:
    """Return the downstream parameters, and what they consist of where that is more than changed weights.

    >>> dsp_in_words(478, 379)
    '478: 379 changed weights and 99 in modules stored whole'
    """
    if dsp == changed:
        return f"{dsp:,}"
    return f"{dsp:,}: {changed:,} changed weights and {dsp - changed:,} in modules stored whole"

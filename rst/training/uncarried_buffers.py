"""Buffers whose change no delta holds (complex, sparse, quantised): a change is reported at the next step.

Whether a buffer will change is not known when the trainer is created; after the training it is too late.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from rst.delta.parameter_delta import check_carried, is_judged
from rst.numerics.exactness import bit_equal

_Seen = tuple[int, int | None]


@dataclass
class _Place:
    module: nn.Module
    attribute: str
    seen: _Seen


class UncarriedBuffers:
    """The persistent buffers of a model that a delta cannot hold, each with the module that has it."""

    def __init__(self, model: nn.Module, live: Mapping[str, Tensor], names: Iterable[str]) -> None:
        """Watch the buffers among `names` in `live` that no delta holds."""
        wanted = {id(live[name]): name for name in names if not is_judged(live[name])}
        self._places: dict[str, _Place] = {}
        for module in model.modules() if wanted else ():
            for attribute, buffer in module._buffers.items():
                if buffer is not None and id(buffer) in wanted:
                    self._places[wanted[id(buffer)]] = _Place(module, attribute, _seen(buffer))

    def check(self, base: Mapping[str, Tensor]) -> None:
        """Compare the buffers that were written to, or replaced, since the last call with `base`.

        Raises:
            ParameterMismatchError: a buffer has changed.
        """
        for name, place in self._places.items():
            buffer = place.module._buffers.get(place.attribute)
            if buffer is None or _seen(buffer) == place.seen:
                continue
            origin = base[name]
            if not bit_equal(origin.to(buffer.device) if not origin.is_meta else origin, buffer):
                check_carried(name, buffer)
            place.seen = _seen(buffer)


def _seen(buffer: Tensor) -> _Seen:
    return id(buffer), None if buffer.is_inference() else buffer._version

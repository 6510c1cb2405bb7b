"""Eq. 17 on a GPU with w0 in CPU memory, copied in chunks: one is copied while the previous one is projected.

Two buffers on the device alternate. A copy waits, on a stream of its own, for the launch that last read its buffer; a
launch waits for its copy. The host waits for neither if w0 is pinned.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, get_device_module

from rst.training.projection_eager import Pair, flat_views

OnOneDevice = Callable[[Iterable[Pair], float | Tensor], object]
_CHUNK_BYTES = 1 << 27
_ALIGNMENT = 64


class StreamedProjection:
    """Projects weights whose origins may be on the CPU, with a projection for one device."""

    def __init__(self, project: OnOneDevice, chunk_bytes: int = _CHUNK_BYTES) -> None:
        """Allocate nothing before the first call.

        Args:
            project: projects weights and origins on one device.
            chunk_bytes: size of each of the two buffers on a device.
        """
        self._project, self._chunk_bytes = project, chunk_bytes // _ALIGNMENT * _ALIGNMENT
        self._buffers: dict[torch.device, _Buffers] = {}

    @torch.no_grad()
    def __call__(self, pairs: Iterable[Pair], threshold: float | Tensor) -> None:
        """Reset, in place, the weights with `|wt - w0| <= threshold` to w0; arguments as of `project_eager`.

        An origin may be on the CPU, pinned or not, or on the device of its weight.
        """
        for weights, origins in self._chunks(pairs):
            device = weights[0].device
            if device not in self._buffers:
                self._buffers[device] = _Buffers(device, self._chunk_bytes)
            buffers = self._buffers[device]
            self._project(zip(weights, buffers.bring(origins), strict=True), threshold)
            buffers.were_read()

    def __reduce__(self) -> tuple[object, ...]:
        """Copy without the buffers; a copy allocates its own."""
        return StreamedProjection, (self._project, self._chunk_bytes)

    def _chunks(self, pairs: Iterable[Pair]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """Yield weights of one device, or pieces of them, with their origins, that fit into a buffer."""
        weights: list[Tensor] = []
        origins: list[Tensor] = []
        room = self._chunk_bytes
        for weight, origin in (piece for pair in pairs for piece in self._pieces(*pair)):
            if weights and (origin.nbytes > room or weight.device != weights[0].device):
                yield weights, origins
                weights, origins, room = [], [], self._chunk_bytes
            weights.append(weight)
            origins.append(origin)
            room -= -(-origin.nbytes // _ALIGNMENT) * _ALIGNMENT
        if weights:
            yield weights, origins

    def _pieces(self, weight: Tensor, origin: Tensor) -> Iterator[Pair]:
        flat = flat_views(weight, origin)
        if flat is None or origin.device == weight.device:
            yield weight, origin.to(weight.device)
        else:
            longest = self._chunk_bytes // weight.element_size()
            yield from zip(torch.split(flat[0], longest), torch.split(flat[1], longest), strict=True)


class _Buffers:
    """Two alternating buffers on a device, and the stream that fills them."""

    def __init__(self, device: torch.device, size: int) -> None:
        self._device, self._streams = device, get_device_module(device)
        self._memory = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2)]
        self._read: list[Any] = [None, None]
        self._turn = 0
        with device:
            self._side = self._streams.Stream()
        self._side.wait_stream(self._streams.current_stream(device))  # which used the memory before

    def bring(self, origins: Sequence[Tensor]) -> list[Tensor]:
        """Copy origins from other devices into the next buffer; the current stream waits for it, the host does not."""
        self._turn = 1 - self._turn
        memory, used, brought = self._memory[self._turn], 0, []
        if self._read[self._turn] is not None:
            self._side.wait_event(self._read[self._turn])
        with self._streams.stream(self._side):
            for origin in origins:
                if origin.device == self._device:
                    brought.append(origin)
                    continue
                there = memory[used : used + origin.nbytes].view(origin.dtype)
                brought.append(there.copy_(origin, non_blocking=True))
                used += -(-origin.nbytes // _ALIGNMENT) * _ALIGNMENT
        self._streams.current_stream(self._device).wait_event(self._side.record_event())
        return brought

    def were_read(self) -> None:
        """Allow filling the buffer again once the current stream reaches this point."""
        self._read[self._turn] = self._streams.current_stream(self._device).record_event()

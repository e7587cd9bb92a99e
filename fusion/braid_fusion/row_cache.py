"""What one session keeps at one fusion point: rows by position, growing and croppable. Knows no strategy.

Letters: T rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_FIRST_CAPACITY = 64


class RowCache:
    """Named buffers of rows, one row per position of the session.

    A strategy appends its rows of each call under its own names and gets all rows so far. Made for inference:
    buffers are written in place. Rows that carry gradient are joined anew each time instead, and carry it on.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._lengths: dict[str, int] = {}
        self._parts: dict[int, RowCache] = {}
        self._lanes: dict[int, RowCache] = {}

    def append(self, name: str, rows_T: Tensor) -> Tensor:
        """Add rows (T, ...) under ``name``; returns all so far, a view that holds until the next call."""
        length = self._lengths.get(name, 0)
        end = length + rows_T.shape[0]
        buffer = self._buffers.get(name)
        if rows_T.requires_grad or (buffer is not None and buffer.requires_grad):
            whole = rows_T if buffer is None else torch.cat([buffer[:length], rows_T])
            self._buffers[name], self._lengths[name] = whole, end
            return whole
        if (
            buffer is None
            or buffer.shape[0] < end
            or (buffer.is_inference() and not torch.is_inference_mode_enabled())
        ):
            grown = rows_T.new_empty((max(_FIRST_CAPACITY, 2 * length, end), *rows_T.shape[1:]))
            if buffer is not None:
                grown[:length] = buffer[:length]
            self._buffers[name] = buffer = grown
        buffer[length:end] = rows_T
        self._lengths[name] = end
        return buffer[:end]

    def part(self, key: int) -> RowCache:
        """A cache within this one, cropped with it."""
        return self._parts.setdefault(key, RowCache())

    def lane(self, lane: int) -> RowCache:
        """The cache for the rows of shards with another tokenizer, whose positions are their own: `crop_lanes` crops
        them. Lane 0 is this one."""
        return self if lane == 0 else self._lanes.setdefault(lane, RowCache())

    def crop_lanes(self, lengths: Sequence[int]) -> None:
        """Forget in each lane the positions from its length on."""
        for lane, length in enumerate(lengths):
            self.lane(lane).crop(length)

    def crop(self, length: int) -> None:
        """Forget this lane's positions from ``length`` on."""
        for name, held in self._lengths.items():
            if held > length:
                self._lengths[name] = length
        for part in self._parts.values():
            part.crop(length)

    def copy(self) -> RowCache:
        """The same rows in buffers of their own, as when a sequence goes on in two ways."""
        twin = RowCache()
        twin._lengths = dict(self._lengths)
        twin._buffers = {name: buffer.clone() for name, buffer in self._buffers.items()}
        twin._parts = {key: part.copy() for key, part in self._parts.items()}
        twin._lanes = {lane: cache.copy() for lane, cache in self._lanes.items()}
        return twin

    def num_bytes(self) -> int:
        """Bytes that the buffers take, spare room included."""
        own = sum(buffer.numel() * buffer.element_size() for buffer in self._buffers.values())
        inner = [*self._parts.values(), *self._lanes.values()]
        return own + sum(part.num_bytes() for part in inner)


def contiguous_rows(rows_T: Tensor, start: int, count: int) -> Tensor:
    """Rows [start, start + count), without an operation where these are all."""
    return rows_T if count == rows_T.shape[0] else torch.narrow(rows_T, 0, start, count)

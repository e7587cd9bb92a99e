"""Graphs of spans that wait for their gradients: bounded in bytes and in time. Knows no model.

A graph that is dropped costs nothing but computing its span again.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from braid_rpc.errors import UnsupportedModelError
from braid_rpc.training import SpanOutputs


@dataclass(frozen=True, slots=True)
class GroupGraph:
    """A group that was run through a span: ``outputs`` depend on ``hidden_TD``, the states that entered it, and are
    the rows ``rows`` of what its call gave."""

    hidden_TD: Tensor  # noqa: N815 - shape letters
    outputs: SpanOutputs[Tensor]
    rows: slice | Tensor


@dataclass(frozen=True, slots=True)
class SpanGraph:
    """A call's span: all its groups in order. It gave ``num_rows`` rows. ``num_bytes`` is what is kept of all that
    went in and came out and for backward, beside the model's own weights."""

    groups: Sequence[GroupGraph]
    num_rows: int
    num_bytes: int


class SavedBytes:
    """Counts what autograd saves within `counting`, without what is saved twice or is there anyway.

    A backward through what was changed in place after it was saved raises UnsupportedModelError. Autograd's own check
    for that is off where there are hooks.
    """

    def __init__(self, anyway: Collection[int]) -> None:
        """``anyway``: addresses of storages that don't count."""
        self.num_bytes = 0
        self._seen = set(anyway)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """For as long as the block runs."""
        with torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack):
            yield

    def note(self, tensor: Tensor) -> None:
        """Count one more that is kept."""
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address not in self._seen:
            self._seen.add(address)
            self.num_bytes += storage.nbytes()

    def _pack(self, tensor: Tensor) -> tuple[Tensor, int]:
        self.note(tensor)
        # A node that held its own output would never be freed. Both count the same changes.
        return tensor.detach(), tensor._version


def _unpack(saved: tuple[Tensor, int]) -> Tensor:
    tensor, version = saved
    if tensor._version != version:
        raise UnsupportedModelError(
            f"backward: a tensor {tuple(tensor.shape)} that the model's gradient depends on was changed in place: "
            f"got version {tensor._version}, expected {version}"
        )
    return tensor


class KeptGraphs:
    """Graphs by id. Whoever asks for room gets it from the oldest; one that is too large by itself is not kept.

    ``peak_bytes`` is the most that were kept at the same time.
    """

    def __init__(self, max_bytes: int, ttl_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._clock = clock
        self._graphs: OrderedDict[str, tuple[SpanGraph, float]] = OrderedDict()
        self._num_bytes = self.peak_bytes = 0
        self._lock = threading.Lock()
        self._watch: threading.Timer | None = None

    @property
    def num_bytes(self) -> int:
        """Of all that are kept."""
        return self._num_bytes

    def __len__(self) -> int:
        return len(self._graphs)

    def keep(self, graph_id: str, graph: SpanGraph) -> None:
        """Keep a graph for as long as there is room, in place of one of the same id."""
        with self._lock:
            self._drop(graph_id)
            self._drop_old()
            if graph.num_bytes > self.max_bytes:
                return
            while self._num_bytes + graph.num_bytes > self.max_bytes:
                self._drop(next(iter(self._graphs)))
            self._graphs[graph_id] = (graph, self._clock() + self._ttl_s)
            self._num_bytes += graph.num_bytes
            self.peak_bytes = max(self.peak_bytes, self._num_bytes)
            self._watch_old()

    def take(self, graph_id: str) -> SpanGraph | None:
        """A graph, which is kept no longer; None if it is gone."""
        with self._lock:
            self._drop_old()
            return self._drop(graph_id)

    def clear(self) -> None:
        """Drop all."""
        with self._lock:
            self._graphs.clear()
            self._num_bytes = 0

    def _drop(self, graph_id: str) -> SpanGraph | None:
        graph, _ = self._graphs.pop(graph_id, (None, 0.0))
        if graph is not None:
            self._num_bytes -= graph.num_bytes
        return graph

    def _drop_old(self) -> None:
        now_s = self._clock()
        while self._graphs:
            oldest = next(iter(self._graphs))
            if self._graphs[oldest][1] > now_s:
                return
            self._drop(oldest)

    def _watch_old(self) -> None:
        """Old graphs go even when nobody calls."""
        if self._watch is None:
            self._watch = threading.Timer(max(self._ttl_s / 4, 0.05), self._look)
            self._watch.daemon = True
            self._watch.start()

    def _look(self) -> None:
        with self._lock:
            self._watch = None
            self._drop_old()
            if self._graphs:
                self._watch_old()

"""Shards and fusion modules in this process. Each shard has a thread of its own, so that all work at once.

No bytes are copied: the engine's tensors are the backend's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

import torch
from torch import Tensor

from braid_fusion.plan import BraidPlan
from braid_orchestrator.engine.ports import FuseResult, PointMetrics
from braid_orchestrator.engine.worker_thread import WorkerThread
from braid_rpc.cards import ChatFormat, ShardCard
from braid_rpc.publishing import PublishedVersion
from braid_rpc.steps import Lane, OpenSession, Segment, SpanResult, SpanStep
from braid_services.fusion.backend import FusionBackend, FusionStream
from braid_services.shard.backend import ShardBackend
from braid_services.shard.stream import ShardStream

ResultT = TypeVar("ResultT")


class LocalShard:
    """A `Shard` over a backend in this process. The backend outlives it."""

    def __init__(self, backend: ShardBackend) -> None:
        self._backend = backend
        self._stream: ShardStream = backend.stream()
        self._thread = WorkerThread(f"shard-{backend.card.name}")
        self._started: deque[Future[SpanResult[Tensor]]] = deque()

    @property
    def name(self) -> str:
        """The shard's name."""
        return self._backend.card.name

    @property
    def card(self) -> ShardCard:
        """As it is now, free bytes included."""
        return self._backend.card

    @property
    def num_replicas(self) -> int:
        """One."""
        return 1

    @property
    def num_bytes(self) -> int:
        """None: nothing is copied."""
        return 0

    def open(self, sessions: Sequence[OpenSession]) -> None:
        """See `ports.Shard`."""
        self._call(lambda: self._stream.open(sessions))

    def send_step(self, step: SpanStep[Tensor]) -> None:
        """See `ports.Shard`."""
        self._started.append(self._thread.submit(lambda: self._stream.step(step)))

    def receive_step(self) -> SpanResult[Tensor]:
        """See `ports.Shard`."""
        return self._started.popleft().result()

    def crop(self, session_id: str, length: int) -> None:
        """See `ports.Shard`."""
        self._call(lambda: self._stream.crop(session_id, length))

    def close(self, session_ids: Sequence[str]) -> None:
        """See `ports.Shard`."""
        self._call(lambda: self._stream.close(session_ids))

    def tokenizer_json(self) -> str:
        """See `ports.Shard`."""
        return self._backend.tokenizer_json()

    def chat_format(self) -> ChatFormat:
        """See `ports.Shard`."""
        return self._backend.chat_format

    def reconnect(self) -> None:
        """See `ports.Shard`."""
        self._started.clear()
        self._call(self._stream.end)
        self._stream = self._backend.stream()

    def shutdown(self) -> None:
        """See `ports.Shard`."""
        self._call(self._stream.end)
        self._thread.shutdown()

    def _call(self, function: Callable[[], ResultT]) -> ResultT:
        """On the stream's own thread: its suspended forwards can't leave it."""
        return self._thread.submit(function).result()


class LocalFusion:
    """A `Fusion` over a backend in this process, run in the engine's own thread."""

    def __init__(self, backend: FusionBackend) -> None:
        self._backend = backend
        self._stream: FusionStream | None = None

    @property
    def active_version(self) -> str:
        """The version that new sessions get."""
        return self._backend.active_version

    def prepare(self, plan: BraidPlan) -> None:
        """See `ports.Fusion`."""
        self._backend.prepare(plan)
        self._stream = self._backend.stream()

    def open(self, session_ids: Sequence[str], version: str = "") -> str:
        """See `ports.Fusion`."""
        return self._open_stream.open(session_ids, version)

    def fuse(
        self,
        step_id: int,
        point: int,
        segments: Sequence[Segment],
        states: Sequence[Tensor],
        lanes: Sequence[Lane] = (),
        metric_rows: Sequence[int] = (),
    ) -> FuseResult:
        """See `ports.Fusion`."""
        result = self._open_stream.fuse(step_id, point, segments, states, lanes, metric_rows)
        return FuseResult(result.states, result.timings, result.row_metrics)

    def read_out(
        self, step_id: int, session_ids: Sequence[str], hidden: Sequence[Tensor], features: Tensor
    ) -> Tensor:
        """See `ports.Fusion`."""
        with torch.inference_mode():
            return self._open_stream.read_out(step_id, session_ids, hidden, features)

    def close(self, session_ids: Sequence[str]) -> None:
        """See `ports.Fusion`."""
        self._open_stream.close(session_ids)

    def activate(self, version: str) -> None:
        """See `ports.Fusion`."""
        self._backend.activate(version)

    @property
    def max_publish_bytes(self) -> int:
        """See `ports.Fusion`."""
        return self._backend.max_publish_bytes

    def publish(
        self, card_json: str, data: bytes, version: str = "", *, activate: bool = True
    ) -> PublishedVersion:
        """See `ports.Fusion`."""
        return self._backend.publish(card_json, data, version, activate=activate)

    def metrics(self) -> Sequence[PointMetrics]:
        """See `ports.Fusion`."""
        return self._backend.metrics()

    def reconnect(self) -> None:
        """See `ports.Fusion`."""
        self._open_stream.end()
        self._stream = self._backend.stream()

    def shutdown(self) -> None:
        """See `ports.Fusion`."""
        if self._stream is not None:
            self._stream.end()

    @property
    def _open_stream(self) -> FusionStream:
        if self._stream is None:
            raise RuntimeError("prepare() comes before anything else")
        return self._stream

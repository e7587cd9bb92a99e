"""The fusion service over gRPC: one long-lived stream, one message per exchange.

Knows how records become messages; how bytes travel is `braid_rpc`'s.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from torch import Tensor

from braid_fusion.plan import BraidPlan
from braid_orchestrator.engine.ports import FuseResult, PointMetrics
from braid_rpc.cards import PROTOCOL_VERSION
from braid_rpc.errors import (
    BraidError,
    FrameError,
    ProtocolVersionError,
    UnavailableError,
    UnknownVersionError,
)
from braid_rpc.frames import check_frames, frame_code, is_narrower
from braid_rpc.fusion_client import FusionClient
from braid_rpc.fusion_messages import lanes_to_proto, row_metrics_of
from braid_rpc.publishing import PublishedVersion
from braid_rpc.shard_messages import segments_to_proto
from braid_rpc.steps import Lane, Segment, Timings
from braid_rpc.stream_client import FusionStreamClient
from braid_rpc.v1 import fusion_pb2, tensor_pb2
from braid_services.frames import decode_frame, put_frame
from braid_services.tensors import decode_torch, encode_torch

_log = logging.getLogger(__name__)


class RemoteFusion:
    """A `Fusion` behind a gRPC server. ``resolve`` says where; it is asked again for every new connection."""

    def __init__(self, resolve: Callable[[], str], step_timeout_s: float, frames: str | None = None) -> None:
        """Connects with `prepare`; states travel as ``frames`` (None: as they are)."""
        self._frames = frames
        self._resolve = resolve
        self._step_timeout_s = step_timeout_s
        self._plan: BraidPlan | None = None
        self._client: FusionClient | None = None
        self._stream: FusionStreamClient | None = None
        self._target = ""
        self._instance_id = ""
        self._max_publish_bytes = 0
        self._active_version = ""
        self._num_told = 0  # how often a version was activated from here

    @property
    def active_version(self) -> str:
        """The version that new sessions get, as last heard."""
        return self._active_version

    def prepare(self, plan: BraidPlan) -> None:
        """See `ports.Fusion`. Raises also: UnavailableError, ProtocolVersionError."""
        self._plan = plan
        self._target = target = self._resolve()
        self._client = FusionClient(target)
        card = self._client.prepare(plan.to_json())
        if card.protocol_version != PROTOCOL_VERSION:
            raise ProtocolVersionError(
                f"fusion service: got protocol version {card.protocol_version}, expected {PROTOCOL_VERSION}"
            )
        check_frames("fusion.frames", self._frames, card.frames)
        self._active_version = card.active_version
        self._instance_id = card.instance_id
        self._max_publish_bytes = card.max_publish_bytes
        self._stream = FusionStreamClient(target)

    def open(self, session_ids: Sequence[str], version: str = "") -> str:
        """See `ports.Fusion`."""
        message = fusion_pb2.OpenFusionSessions(session_ids=session_ids, version=version)
        since = self._num_told
        opened = str(self._call(fusion_pb2.FusionRequest(open=message)).opened.version)
        if not version:
            self._hear(opened, since)
        return opened

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
        started = time.perf_counter()
        request = fusion_pb2.FusionRequest()
        message = request.fuse
        message.step_id = step_id
        message.point = point
        message.segments.extend(segments_to_proto(segments))
        if lanes:
            message.lanes.extend(lanes_to_proto(lanes))
        message.metric_rows.extend(metric_rows)
        narrow = any(is_narrower(self._frames, _dtype_name(state)) for state in states)
        if narrow and self._frames is not None:
            message.frames = frame_code(self._frames)
        for state in states:
            put_frame(state, self._format(state), message.states.add())
        encode_s = time.perf_counter() - started
        reply = self._call(request)
        started = time.perf_counter()
        if len(reply.fused.states) != len(states):
            raise FrameError(
                f"fusion service: got {len(reply.fused.states)} states, expected one per shard: {len(states)}"
            )
        fused = [
            _fused(own, message, is_update=narrow)
            for own, message in zip(states, reply.fused.states, strict=True)
        ]
        timings = Timings(
            compute_s=reply.timings.compute_us * 1e-6,
            wait_s=reply.timings.wait_us * 1e-6,
            serialize_s=reply.timings.serialize_us * 1e-6 + encode_s + time.perf_counter() - started,
        )
        return FuseResult(fused, timings, row_metrics_of(reply.fused, len(metric_rows)))

    def read_out(
        self, step_id: int, session_ids: Sequence[str], hidden: Sequence[Tensor], features: Tensor
    ) -> Tensor:
        """See `ports.Fusion`."""
        message = fusion_pb2.ReadOut(
            step_id=step_id, session_ids=session_ids, features=encode_torch(features)
        )
        for state in hidden:
            put_frame(state, self._format(state), message.hidden.add())
        reply = self._call(fusion_pb2.FusionRequest(read_out=message))
        shape = (len(session_ids), len(hidden))
        return decode_torch(reply.weights.log_weights, dtypes=["float32"], shape=shape, what="log_weights")

    def close(self, session_ids: Sequence[str]) -> None:
        """See `ports.Fusion`."""
        message = fusion_pb2.CloseFusionSessions(session_ids=session_ids)
        since = self._num_told
        self._hear(self._call(fusion_pb2.FusionRequest(close=message)).closed.active_version, since)

    def activate(self, version: str) -> None:
        """See `ports.Fusion`."""
        if self._client is None:
            raise UnavailableError("fusion service: not connected")
        self._tell(self._client.activate(version).active_version)

    @property
    def max_publish_bytes(self) -> int:
        """See `ports.Fusion`; as the service said when it was connected."""
        return self._max_publish_bytes

    def publish(
        self, card_json: str, data: bytes, version: str = "", *, activate: bool = True
    ) -> PublishedVersion:
        """See `ports.Fusion`. Over a connection of its own: it takes long, and others may be made anew meanwhile."""
        if not self._target:
            raise UnavailableError("fusion service: not connected")
        with FusionClient(self._target) as client:
            published = client.publish(card_json, data, version, activate)
        self._tell(published.active_version)
        return published

    def metrics(self) -> Sequence[PointMetrics]:
        """See `ports.Fusion`."""
        if self._client is None:
            raise UnavailableError("fusion service: not connected")
        return self._client.metrics()

    def reconnect(self) -> None:
        """See `ports.Fusion`."""
        self.shutdown()
        if self._plan is None:
            return
        before, instance_id = self._active_version, self._instance_id
        self.prepare(self._plan)
        if before in ("", self._active_version) or instance_id == self._instance_id:
            return
        try:
            self.activate(before)  # a service that was restarted knows its configured version only
        except UnknownVersionError as error:
            _log.warning(
                "the fusion service was restarted and has lost the version that was active; new sessions get %r: %s",
                self._active_version,
                error,
            )
        except BraidError:
            self._active_version, self._instance_id = before, instance_id
            raise

    def shutdown(self) -> None:
        """See `ports.Fusion`."""
        if self._stream is not None:
            self._stream.close()
        if self._client is not None:
            self._client.close()

    def _tell(self, version: str) -> None:
        self._active_version = version
        self._num_told += 1

    def _hear(self, version: str, since: int) -> None:
        """Others may activate versions there, too. What was told from here meanwhile is newer."""
        if version and since == self._num_told:
            self._active_version = version

    def _format(self, state: Tensor) -> str | None:
        return self._frames if is_narrower(self._frames, _dtype_name(state)) else None

    def _call(self, request: fusion_pb2.FusionRequest) -> fusion_pb2.FusionReply:
        if self._stream is None:
            raise UnavailableError("fusion service: not connected")
        try:
            return self._stream.call(request, self._step_timeout_s)
        except BraidError as error:
            raise type(error)(
                f"fusion service: {error.message}", retry_after_s=error.retry_after_s
            ) from error


def _dtype_name(state: Tensor) -> str:
    return str(state.dtype).removeprefix("torch.")


def _fused(own_TD: Tensor, message: tensor_pb2.Tensor, *, is_update: bool) -> Tensor | None:
    """A shard's states after fusion; None if they are its own."""
    if not message.shape:
        return None
    if not is_update:
        return decode_torch(message, shape=own_TD.shape, what="fused")
    # In the wider of the two dtypes, then in the state's own.
    return (own_TD + decode_frame(message, shape=own_TD.shape, what="fused")).to(own_TD.dtype)

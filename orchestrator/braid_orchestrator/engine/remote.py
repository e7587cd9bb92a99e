"""Shards and the fusion service over gRPC: one long-lived stream per part, one message per span.

Knows how records become messages; how bytes travel is `braid_rpc`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from braid_fusion.plan import BraidPlan
from braid_orchestrator.engine.frame_link import FrameLink
from braid_orchestrator.engine.ports import FuseResult, PointMetrics
from braid_rpc.cards import PROTOCOL_VERSION, ChatFormat, ShardCard
from braid_rpc.errors import BraidError, FrameError, ProtocolVersionError, UnavailableError
from braid_rpc.frames import check_frames, frame_code, is_narrower
from braid_rpc.fusion_client import FusionClient
from braid_rpc.fusion_messages import lanes_to_proto
from braid_rpc.shard_client import ShardClient
from braid_rpc.steps import Lane, OpenSession, Segment, SpanResult, SpanStep, Timings
from braid_rpc.stream_client import FusionStreamClient, ShardStreamClient
from braid_rpc.v1 import fusion_pb2, shard_pb2, tensor_pb2
from braid_services.frames import decode_frame, put_frame
from braid_services.tensors import decode_torch, encode_torch, put_torch


class RemoteShard:
    """A `Shard` behind a gRPC server. ``resolve`` says where; it is asked again for every new connection."""

    def __init__(
        self,
        name: str,
        resolve: Callable[[], str],
        step_timeout_s: float,
        max_message_bytes: int,
        frames: str | None = None,
    ) -> None:
        """Connect; states travel as ``frames`` (None: in the shard's dtype).

        Raises: UnavailableError, ProtocolVersionError, ConfigError if the shard takes no such frames."""
        self._name = name
        self._frames = frames
        self._resolve = resolve
        self._step_timeout_s = step_timeout_s
        self._max_message_bytes = max_message_bytes
        self._encode_s = 0.0
        self._connect()

    @property
    def name(self) -> str:
        """The shard's name."""
        return self._name

    @property
    def card(self) -> ShardCard:
        """As described when the connection was made; the free bytes as of the last reply."""
        return replace(self._card, cache_bytes_free=self._cache_bytes_free)

    @property
    def num_replicas(self) -> int:
        """One."""
        return 1

    @property
    def num_bytes(self) -> int:
        """Of all messages over the present connection, both ways."""
        return self._stream.num_bytes

    def open(self, sessions: Sequence[OpenSession]) -> None:
        """See `ports.Shard`."""
        message = shard_pb2.OpenSessions(
            sessions=[
                shard_pb2.OpenSession(session_id=s.session_id, num_tokens=s.num_tokens, end_layer=s.end_layer)
                for s in sessions
            ]
        )
        reply = self._call(shard_pb2.ShardRequest(open=message))
        self._cache_bytes_free = reply.opened.cache_bytes_free

    def send_step(self, step: SpanStep[Tensor]) -> None:
        """See `ports.Shard`."""
        started = time.perf_counter()
        # Written in place, field by field: nothing is copied twice.
        request = shard_pb2.ShardRequest()
        message = request.step
        message.step_id = step.step_id
        message.start_layer = step.start_layer
        message.end_layer = step.end_layer
        message.final = step.final
        self._link.put_states(step, message)
        if step.token_ids is not None:
            put_torch(step.token_ids, message.token_ids)
        if step.segments:
            message.segments.extend(_segments(step.segments))
        if step.logit_rows:
            message.logit_rows.extend(step.logit_rows)
        self._encode_s = time.perf_counter() - started
        try:
            self._stream.send(request)
        except BraidError as error:
            raise self._named(error) from error

    def receive_step(self) -> SpanResult[Tensor]:
        """See `ports.Shard`. Its timings include what this side spent on encoding and decoding."""
        try:
            reply = self._stream.receive(self._step_timeout_s)
        except BraidError as error:
            raise self._named(error) from error
        started = time.perf_counter()
        frame = reply.frame
        self._cache_bytes_free = frame.cache_bytes_free
        hidden = self._link.take_states(frame.hidden, self._max_message_bytes)
        logits = None
        if frame.HasField("logits"):
            logits = decode_torch(frame.logits, max_bytes=self._max_message_bytes, what="frame.logits")
        timings = Timings(
            compute_s=reply.timings.compute_us * 1e-6,
            wait_s=reply.timings.wait_us * 1e-6,
            serialize_s=reply.timings.serialize_us * 1e-6 + self._encode_s + time.perf_counter() - started,
        )
        return SpanResult(hidden, logits, timings, frame.cache_bytes_free)

    def crop(self, session_id: str, length: int) -> None:
        """See `ports.Shard`."""
        message = shard_pb2.Crop(session_id=session_id, length=length)
        self._cache_bytes_free = self._call(shard_pb2.ShardRequest(crop=message)).cropped.cache_bytes_free

    def close(self, session_ids: Sequence[str]) -> None:
        """See `ports.Shard`."""
        message = shard_pb2.CloseSessions(session_ids=session_ids)
        self._cache_bytes_free = self._call(shard_pb2.ShardRequest(close=message)).closed.cache_bytes_free

    def tokenizer_json(self) -> str:
        """See `ports.Shard`."""
        return self._tokenizer.tokenizer_json

    def chat_format(self) -> ChatFormat:
        """See `ports.Shard`."""
        return self._tokenizer.chat

    def reconnect(self) -> None:
        """See `ports.Shard`. Raises also: UnavailableError if another model answers now."""
        self._stream.close()
        before = self._card
        self._connect()
        if (self._card.model_hash, self._card.tokenizer_hash) != (before.model_hash, before.tokenizer_hash):
            self._stream.close()
            raise UnavailableError(
                f"shard {self._name!r}: came back with model {self._card.model_hash[:12]}, expected "
                f"{before.model_hash[:12]}"
            )

    def shutdown(self) -> None:
        """See `ports.Shard`."""
        self._stream.close()

    def _connect(self) -> None:
        try:
            target = self._resolve()
            with ShardClient(target, max_message_bytes=self._max_message_bytes) as client:
                self._card = client.describe()
                self._tokenizer = client.tokenizer_file()
        except BraidError as error:
            raise self._named(error) from error
        self._link = FrameLink(f"shards.{self._name}.frames", self._frames, self._card)
        self._cache_bytes_free = self._card.cache_bytes_free
        self._stream = ShardStreamClient(target, max_message_bytes=self._max_message_bytes)

    def _call(self, request: shard_pb2.ShardRequest) -> shard_pb2.ShardReply:
        try:
            return self._stream.call(request, self._step_timeout_s)
        except BraidError as error:
            raise self._named(error) from error

    def _named(self, error: BraidError) -> BraidError:
        return type(error)(f"shard {self._name!r}: {error.message}", retry_after_s=error.retry_after_s)


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
        self._active_version = ""

    @property
    def active_version(self) -> str:
        """The version that new sessions get, as last heard."""
        return self._active_version

    def prepare(self, plan: BraidPlan) -> None:
        """See `ports.Fusion`. Raises also: UnavailableError, ProtocolVersionError."""
        self._plan = plan
        target = self._resolve()
        self._client = FusionClient(target)
        card = self._client.prepare(plan.to_json())
        if card.protocol_version != PROTOCOL_VERSION:
            raise ProtocolVersionError(
                f"fusion service: got protocol version {card.protocol_version}, expected {PROTOCOL_VERSION}"
            )
        check_frames("fusion.frames", self._frames, card.frames)
        self._active_version = card.active_version
        self._stream = FusionStreamClient(target)

    def open(self, session_ids: Sequence[str], version: str = "") -> str:
        """See `ports.Fusion`."""
        message = fusion_pb2.OpenFusionSessions(session_ids=session_ids, version=version)
        return str(self._call(fusion_pb2.FusionRequest(open=message)).opened.version)

    def fuse(
        self,
        step_id: int,
        point: int,
        segments: Sequence[Segment],
        states: Sequence[Tensor],
        lanes: Sequence[Lane] = (),
    ) -> FuseResult:
        """See `ports.Fusion`."""
        started = time.perf_counter()
        request = fusion_pb2.FusionRequest()
        message = request.fuse
        message.step_id = step_id
        message.point = point
        message.segments.extend(_segments(segments))
        if lanes:
            message.lanes.extend(lanes_to_proto(lanes))
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
        return FuseResult(fused, timings)

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
        self._call(fusion_pb2.FusionRequest(close=fusion_pb2.CloseFusionSessions(session_ids=session_ids)))

    def activate(self, version: str) -> None:
        """See `ports.Fusion`."""
        if self._client is None:
            raise UnavailableError("fusion service: not connected")
        self._active_version = self._client.activate(version).active_version

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
        before = self._active_version
        self.prepare(self._plan)
        if before and before != self._active_version:
            try:
                self.activate(before)  # a service that was restarted knows its configured version only
            except BraidError:
                self._active_version = before
                raise

    def shutdown(self) -> None:
        """See `ports.Fusion`."""
        if self._stream is not None:
            self._stream.close()
        if self._client is not None:
            self._client.close()

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


def _segments(segments: Sequence[Segment]) -> list[tensor_pb2.Segment]:
    return [
        tensor_pb2.Segment(session_id=s.session_id, position=s.position, num_rows=s.num_rows)
        for s in segments
    ]

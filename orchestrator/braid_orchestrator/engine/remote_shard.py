"""A shard over gRPC: one long-lived stream, one message per span.

Knows how records become messages; how bytes travel is `braid_rpc`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from braid_orchestrator.engine.frame_link import FrameLink
from braid_rpc.cards import ChatFormat, ShardCard
from braid_rpc.errors import BraidError, UnavailableError
from braid_rpc.shard_client import ShardClient
from braid_rpc.shard_messages import segments_to_proto
from braid_rpc.steps import OpenSession, SpanResult, SpanStep, Timings
from braid_rpc.stream_client import ShardStreamClient
from braid_rpc.v1 import shard_pb2
from braid_services.tensors import decode_torch, put_torch


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
            message.segments.extend(segments_to_proto(step.segments))
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

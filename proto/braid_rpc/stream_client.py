"""One long-lived stream to a shard or to the fusion service, for blocking threads: the engine's hot path.

Requests carry an id that replies echo, in order. Typed errors within replies are raised and the stream goes
on; whatever ends the stream itself makes the client unusable, and its sessions are gone on the other side.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections import deque
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import grpc

from braid_rpc.channels import DEFAULT_MAX_MESSAGE_BYTES, make_channel
from braid_rpc.errors import (
    BraidError,
    DeadlineError,
    FrameError,
    RequestCancelledError,
    StepOrderError,
    UnavailableError,
)
from braid_rpc.status import error_from_proto, error_from_status
from braid_rpc.stream_transport import StreamEnd, StreamEndedError, Transport, open_transport, watchdog
from braid_rpc.v1 import fusion_pb2, shard_pb2

RequestT = TypeVar("RequestT")
ReplyT = TypeVar("ReplyT")

DEFAULT_TIMEOUT_S = 60.0


class StreamClient(Generic[RequestT, ReplyT]):
    """One `Run` stream on a connection of its own. Not for two threads at once, except `close`.

    Several requests may be on their way; replies come in their order. After `UnavailableError` or
    `DeadlineError` from the transport `usable` is False, and every further call raises UnavailableError.
    """

    _method: str
    _reply_type: Any

    def __init__(
        self,
        target: str,
        *,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        send_timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        """Open the stream on ``target``. The connection is made with the first request.

        ``send_timeout_s`` bounds how long `send` waits for the request before to leave.
        Raises: InvalidRequestError for a malformed target.
        """
        self.target = target
        self.channel = make_channel(target, max_message_bytes)
        self._max_message_bytes = max_message_bytes
        self._send_timeout_s = send_timeout_s
        self._transport = open_transport(self.channel, self._method)
        self._awaited: deque[int] = deque()
        self._last_id = 0
        self.num_bytes = 0
        """Of all messages so far, both ways."""
        self._failure: str | None = None
        self._use = threading.Lock()
        self._parse = self._reply_type.FromString
        # Also when nobody closes it: the peer must not keep sessions for a client that was dropped.
        self._release = weakref.finalize(self, _release, self._transport, self.channel, self._use)
        watchdog.watch(self._transport)

    @property
    def usable(self) -> bool:
        """False once the stream has ended, for whatever reason."""
        return self._failure is None

    @property
    def num_awaited(self) -> int:
        """Requests sent whose replies have not been received."""
        return len(self._awaited)

    def send(self, request: Any) -> int:
        """Number ``request`` (its ``id`` is set) and send it; returns the id.

        Raises: FrameError if it is larger than a message may be (nothing was sent), UnavailableError,
            DeadlineError.
        """
        request_id = self._last_id + 1
        request.id = request_id
        data = request.SerializeToString()
        if len(data) > self._max_message_bytes:
            raise FrameError(
                f"request to {self.target}: got {len(data)} bytes, expected at most {self._max_message_bytes}"
            )
        transport = self._transport
        with self._use:
            self._check_usable()
            transport.deadline = time.monotonic() + self._send_timeout_s
            try:
                transport.send(data)
            except StreamEndedError as ended:
                raise self._fail(ended.end, self._send_timeout_s) from None
            finally:
                transport.deadline = math.inf
        self._last_id = request_id
        self.num_bytes += len(data)
        self._awaited.append(request_id)
        return request_id

    def receive(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> ReplyT:
        """Wait for the reply to the request that was sent first of those not answered yet.

        Raises: the error that the reply carries, after which the stream goes on; UnavailableError if the
            peer is gone; DeadlineError if ``timeout_s`` passes, after which the stream is unusable;
            StepOrderError if nothing was sent.
        """
        transport = self._transport
        with self._use:
            self._check_usable()
            if not self._awaited:
                raise StepOrderError(f"stream to {self.target}: got a receive, expected a send before it")
            transport.deadline = time.monotonic() + timeout_s
            try:
                data = transport.receive()
            except StreamEndedError as ended:
                raise self._fail(ended.end, timeout_s) from None
            finally:
                transport.deadline = math.inf
        self.num_bytes += len(data)
        reply = self._parse(data)
        expected = self._awaited.popleft()
        if reply.id != expected:
            self._break(f"got a reply to request {reply.id}, expected one to {expected}")
            raise FrameError(f"stream to {self.target}: {self._failure}")
        if reply.WhichOneof("result") == "error":
            raise error_from_proto(reply.error)
        return reply  # type: ignore[no-any-return]

    def call(self, request: Any, timeout_s: float = DEFAULT_TIMEOUT_S) -> ReplyT:
        """Send and wait for the reply, while nothing else is on its way. Raises: as `send` and `receive`."""
        self._check_usable()
        if self._awaited:
            due = len(self._awaited)
            raise StepOrderError(
                f"stream to {self.target}: got a call while {due} replies are due, expected 0"
            )
        self.send(request)
        return self.receive(timeout_s)

    def close(self) -> None:
        """End the stream and the connection; the peer frees the sessions. May be called more than once, and
        from another thread: whoever waits gets UnavailableError."""
        self._break("closed by this side")
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_usable(self) -> None:
        if self._failure is not None:
            raise UnavailableError(f"stream to {self.target}: no longer usable: {self._failure}")

    def _break(self, why: str) -> None:
        if self._failure is None:
            self._failure = why
            self._transport.cancel()

    def _fail(self, end: StreamEnd, timeout_s: float) -> BraidError:
        if self._failure is not None:
            return UnavailableError(f"stream to {self.target}: {self._failure}")
        if end.timed_out:
            self._break(f"no answer within {timeout_s:g} s")
            return DeadlineError(f"stream to {self.target}: {self._failure}")
        reason = error_from_status(end.status, end.details, end.metadata)
        self._break(f"ended with {end.status}: {reason.message}")
        if type(reason) in (BraidError, RequestCancelledError, UnavailableError):
            return UnavailableError(
                f"stream to {self.target}: {self._failure}", retry_after_s=reason.retry_after_s
            )
        return reason


def _release(transport: Transport, channel: grpc.Channel, use: threading.Lock) -> None:
    transport.cancel()
    watchdog.forget(transport)
    # A thread that waits for a reply is woken by the cancellation and must be done with the stream first.
    with use:
        transport.drain()
        channel.close()


class ShardStreamClient(StreamClient[shard_pb2.ShardRequest, shard_pb2.ShardReply]):
    """The stream to one shard."""

    _method = "/braid.v1.Shard/Run"
    _reply_type = shard_pb2.ShardReply


class FusionStreamClient(StreamClient[fusion_pb2.FusionRequest, fusion_pb2.FusionReply]):
    """The stream to the fusion service."""

    _method = "/braid.v1.Fusion/Run"
    _reply_type = fusion_pb2.FusionReply

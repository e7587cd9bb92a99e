"""How the bytes of one bidirectional stream are moved by a blocking thread. Knows no messages.

Two ways, one behaviour. `PolledTransport` lets the calling thread itself hand the message to gRPC's core and
wait on the call's own completion queue, as gRPC's single-threaded stubs do inside: no thread is woken up but
the caller. `QueuedTransport` uses nothing but gRPC's public interface, where one thread takes requests from
an iterator and another waits for replies; it stands in where the former isn't possible.

A wait that lasts too long is ended from outside, by cancelling the call: see `_Watchdog`.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
import weakref
from collections import deque
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Protocol

import grpc

try:
    from grpc._cython import cygrpc
except ImportError:  # another gRPC than we know
    cygrpc = None

# How exact a timeout is.
TICK_S = 0.05

_STATUS_NAMES: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """Why a stream ended: status name, details, trailing metadata; ``timed_out`` if we ended it for that."""

    status: str
    details: str
    metadata: tuple[Any, ...] = ()
    timed_out: bool = False


class StreamEndedError(Exception):
    """The stream is over; ``end`` says why. Only `stream_client` sees this."""

    def __init__(self, end: StreamEnd) -> None:
        super().__init__(end.details)
        self.end = end


class Transport(Protocol):
    """One stream. `send` and `receive` are called by one thread at a time, `cancel` and `expire` by any."""

    deadline: float

    def send(self, data: bytes) -> None:
        """Hand a message over; waits only while the one before hasn't left. Raises: StreamEndedError."""

    def receive(self) -> bytes:
        """The next reply. Raises: StreamEndedError."""

    def cancel(self) -> None:
        """End the call; whoever waits gets StreamEndedError."""

    def expire(self) -> None:
        """As `cancel`, because ``deadline`` has passed."""

    def drain(self) -> None:
        """After `cancel`: wait until gRPC has let go of the call, which is a matter of microseconds."""


class _Watchdog:
    """Ends waits that have lasted too long; one daemon thread, running while there are streams."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._streams: weakref.WeakSet[Any] = weakref.WeakSet()
        self._thread: threading.Thread | None = None

    def watch(self, transport: Transport) -> None:
        with self._lock:
            self._streams.add(transport)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="braid-stream-timeouts", daemon=True)
                self._thread.start()

    def forget(self, transport: Transport) -> None:
        with self._lock:
            self._streams.discard(transport)

    def _run(self) -> None:
        while True:
            time.sleep(TICK_S)
            with self._lock:
                streams = list(self._streams)
                if not streams:
                    self._thread = None
                    return
            now = time.monotonic()
            for transport in streams:
                if now > transport.deadline:
                    transport.expire()
            del streams


watchdog = _Watchdog()

_BEGIN, _SEND, _RECEIVE, _END = "begin", "send", "receive", "end"


class PolledTransport:
    """The calling thread does all the work, on a completion queue of the call's own."""

    def __init__(self, channel: grpc.Channel, method: str) -> None:
        self.deadline = math.inf
        self._replies: deque[bytes] = deque()
        self._num_awaited = 0
        self._is_sending = False
        self._is_receiving = False
        self._timed_out = False
        self._end: StreamEnd | None = None
        begin = (cygrpc.SendInitialMetadataOperation(None, 0), cygrpc.ReceiveInitialMetadataOperation(0))
        end = (cygrpc.ReceiveStatusOnClientOperation(0),)
        self._call = channel._channel.segregated_call(
            0, method.encode(), None, None, None, None, ((begin, _BEGIN), (end, _END)), None, None
        )

    def send(self, data: bytes) -> None:
        while self._is_sending:
            self._poll()
        if self._end is not None:
            raise StreamEndedError(self._end)
        self._call.operate((cygrpc.SendMessageOperation(data, 0),), _SEND)
        self._is_sending = True
        self._num_awaited += 1
        self._await_reply()

    def receive(self) -> bytes:
        while not self._replies:
            if self._end is not None:
                raise StreamEndedError(self._end)
            self._poll()
        return self._replies.popleft()

    def cancel(self) -> None:
        self._call.cancel(1, "cancelled by the caller")

    def expire(self) -> None:
        self._timed_out = True
        self.cancel()

    def drain(self) -> None:
        while self._end is None:
            self._poll()

    def _await_reply(self) -> None:
        if not self._is_receiving and self._num_awaited > 0 and self._end is None:
            self._call.operate((cygrpc.ReceiveMessageOperation(0),), _RECEIVE)
            self._is_receiving = True

    def _poll(self) -> None:
        event = self._call.next_event()
        tag = event.tag
        if tag is _RECEIVE:
            self._is_receiving = False
            message = event.batch_operations[0].message()
            if message is None:  # the stream is ending; its status is on the way
                self._num_awaited = 0
                return
            self._replies.append(message)
            self._num_awaited -= 1
            self._await_reply()
        elif tag is _SEND:
            self._is_sending = False
        elif tag is _END:
            status = event.batch_operations[0]
            self._is_sending = False
            self._end = StreamEnd(
                _STATUS_NAMES.get(status.code(), "UNKNOWN"),
                _decode(status.details()),
                tuple(status.trailing_metadata() or ()),
                self._timed_out,
            )


class QueuedTransport:
    """The public way: requests go through a queue to gRPC's sending thread."""

    def __init__(self, channel: grpc.Channel, method: str) -> None:
        self.deadline = math.inf
        self._timed_out = False
        self._requests: SimpleQueue[bytes | None] = SimpleQueue()
        self._call = channel.stream_stream(method)(iter(self._requests.get, None))

    def send(self, data: bytes) -> None:
        if not self._call.is_active():
            raise StreamEndedError(self._read_end())
        self._requests.put(data)

    def receive(self) -> bytes:
        try:
            reply: bytes = next(self._call)
        except (StopIteration, grpc.RpcError):
            self._requests.put(None)
            raise StreamEndedError(self._read_end()) from None
        return reply

    def cancel(self) -> None:
        self._call.cancel()
        self._requests.put(None)

    def expire(self) -> None:
        self._timed_out = True
        self.cancel()

    def drain(self) -> None:
        with contextlib.suppress(StopIteration, grpc.RpcError):
            while True:
                next(self._call)

    def _read_end(self) -> StreamEnd:
        code = self._call.code()
        return StreamEnd(
            code.name,
            self._call.details() or "",
            tuple(self._call.trailing_metadata() or ()),
            self._timed_out,
        )


def open_transport(channel: grpc.Channel, method: str) -> Transport:
    """Begin a stream on ``channel`` in the fastest way that this version of gRPC allows."""
    if cygrpc is not None:
        with contextlib.suppress(AttributeError, TypeError):
            return PolledTransport(channel, method)
    return QueuedTransport(channel, method)


def _decode(details: str | bytes | None) -> str:
    if isinstance(details, bytes):
        return details.decode(errors="replace")
    return details or ""

"""A braid, from a program of one's own, by blocking calls. `braid_client_async` is the same on an event loop.

with BraidClient("127.0.0.1:9000") as client:
    print(client.generate("def add(a, b):", max_tokens=16, temperature=0).text)
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from braid_rpc.calls import (
    DEFAULT_TIMEOUT_S,
    CallOptions,
    Clock,
    Metadata,
    call_unary,
    describe_failure,
    next_pause,
)
from braid_rpc.channels import DEFAULT_MAX_MESSAGE_BYTES, make_channel
from braid_rpc.collecting import collect
from braid_rpc.completion_messages import (
    card_from_proto,
    event_from_proto,
    generate_message,
    score_from_proto,
    score_message,
)
from braid_rpc.completions import (
    BraidCard,
    Completion,
    Event,
    GenerateOptions,
    Prompt,
    Score,
    UseBraiding,
)
from braid_rpc.errors import BraidError
from braid_rpc.handshake import check_protocol
from braid_rpc.v1 import braid_pb2, braid_pb2_grpc

# Ray Serve's gRPC proxy finds the application by this key; a plain server takes no notice.
APPLICATION_KEY = "application"
DEFAULT_APPLICATION = "braid"


def call_metadata(application: str, api_key: str, metadata: Mapping[str, str] | None) -> Metadata:
    """What goes with every call of a client."""
    extra = tuple((metadata or {}).items())
    if api_key:
        extra = (("authorization", f"Bearer {api_key}"), *extra)
    return ((APPLICATION_KEY, application), *extra) if application else extra


class BraidClient:
    """A braid at ``target`` (``host:port`` or ``unix:/path``). Connects with its first call; safe for threads.

    Args:
        application: the name of the Ray Serve application, where one answers.
        timeout_s: of `describe`, `score` and `cancel`, where they aren't told otherwise; `generate` and
            `stream` take as long as the server allows unless they are given a timeout.
        retries: how often a call is repeated that nobody answered. A generation is repeated only as long as
            nothing of it has arrived.
        api_key: for a service that asks for one.
        metadata: sent with every call.

    Every method raises `BraidError`s only, in the class that the server raised.
    """

    def __init__(
        self,
        target: str,
        *,
        application: str = DEFAULT_APPLICATION,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retries: int = 2,
        api_key: str = "",
        metadata: Mapping[str, str] | None = None,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    ) -> None:
        self.target = target
        self._options = CallOptions(target, timeout_s, retries, call_metadata(application, api_key, metadata))
        self._channel = make_channel(target, max_message_bytes)
        self._stub = braid_pb2_grpc.BraidStub(self._channel)

    def generate(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Completion:
        """Complete ``prompt`` (text, or token ids of the anchor) and wait for the whole answer."""
        with self.stream(prompt, **options) as events:
            return collect(events)

    def stream(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> EventStream:
        """Complete ``prompt``; the events come as they happen, `Started` first, `Finished` last.

        Leaving the stream early cancels the request on the server: leave its ``with`` block, close it, or drop it.
        """
        return EventStream(self._stub.Generate, self._options, generate_message(prompt, options))

    def score(
        self,
        prompt: Prompt,
        *,
        use_braiding: UseBraiding | None = None,
        shard: str = "",
        timeout_s: float | None = None,
    ) -> Score:
        """Log-probabilities of a given text; of one ``shard`` alone with ``use_braiding`` false. None: the service's
        default."""
        message = score_message(prompt, use_braiding=use_braiding, shard=shard, timeout_s=timeout_s)
        return score_from_proto(call_unary(self._stub.Score, message, self._options, timeout_s=timeout_s))

    def describe(self, *, timeout_s: float | None = None) -> BraidCard:
        """What the braid is made of. Raises: ProtocolVersionError, naming both versions."""
        request = braid_pb2.DescribeBraidRequest()
        message = call_unary(self._stub.Describe, request, self._options, timeout_s=timeout_s)
        check_protocol(self.target, message.protocol_version)
        return card_from_proto(message)

    def cancel(self, request_id: str) -> bool:
        """End a running request; False if there is none of that id."""
        request = braid_pb2.CancelRequest(request_id=request_id)
        return bool(call_unary(self._stub.Cancel, request, self._options).cancelled)

    def close(self) -> None:
        """Close the connection; running streams end."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Attempts:
    """What a stream of events knows between its attempts; shared by the blocking and the asynchronous one."""

    def __init__(self, options: CallOptions, message: braid_pb2.GenerateRequest) -> None:
        self.timeout_s = message.timeout_s or None
        self.clock = Clock(self.timeout_s)
        self.has_begun = False
        self._options = options
        self._message = message
        self._pauses = options.pauses()
        self._makes_ids = not message.request_id

    def begin(self, method: Callable[..., Any]) -> Any:
        """A new call, under a request id of its own unless the caller chose one."""
        if self._makes_ids:
            self._message.request_id = uuid.uuid4().hex
        return method(self._message, timeout=self.clock.left_s(), metadata=self._options.metadata)

    @property
    def request_id(self) -> str:
        """Of the present attempt."""
        return self._message.request_id

    def judge(self, failure: grpc.RpcError) -> tuple[BraidError, float | None]:
        """The typed error, and after which pause to try again: None for not at all."""
        error = describe_failure(failure, self._options.target, self.timeout_s)
        return error, None if self.has_begun else next_pause(error, self._pauses, self.clock)


class EventStream:
    """The events of one request: an iterator that must be used up or closed. Not for two threads."""

    def __init__(
        self, method: Callable[..., Any], options: CallOptions, message: braid_pb2.GenerateRequest
    ) -> None:
        self._method = method
        self._attempts = Attempts(options, message)
        self._call = self._attempts.begin(method)

    @property
    def request_id(self) -> str:
        """What `BraidClient.cancel` takes."""
        return self._attempts.request_id

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        while True:
            try:
                event = event_from_proto(next(self._call))
            except grpc.RpcError as failure:
                error, pause_s = self._attempts.judge(failure)
                if pause_s is None:
                    raise error from None
            else:
                if event is not None:
                    self._attempts.has_begun = True
                    return event
                continue
            time.sleep(pause_s)
            self._call = self._attempts.begin(self._method)

    def close(self) -> None:
        """Cancel the request if it is still running. May be called more than once."""
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

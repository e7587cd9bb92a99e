"""A braid, from a program of one's own, on an event loop. `braid_client` is the same by blocking calls.

async with AsyncBraidClient("127.0.0.1:9000") as client:
    async with client.stream("def add(a, b):", max_tokens=16) as events:
        async for event in events: ...
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from types import TracebackType
from typing import Any, Self, Unpack

import grpc
import grpc.aio

from braid_rpc.braid_client import DEFAULT_APPLICATION, Attempts, call_metadata
from braid_rpc.calls import DEFAULT_TIMEOUT_S, CallOptions, call_unary_async
from braid_rpc.channels import DEFAULT_MAX_MESSAGE_BYTES, make_aio_channel
from braid_rpc.collecting import CompletionBuilder
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
from braid_rpc.errors import RequestCancelledError
from braid_rpc.handshake import check_protocol
from braid_rpc.v1 import braid_pb2, braid_pb2_grpc


class AsyncBraidClient:
    """A braid at ``target``; everything as in `BraidClient`. To be made and used within one event loop."""

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
        self._channel = make_aio_channel(target, max_message_bytes)
        self._stub = braid_pb2_grpc.BraidStub(self._channel)

    async def generate(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> Completion:
        """Complete ``prompt`` and wait for the whole answer. Cancelling the task cancels the request."""
        builder = CompletionBuilder()
        async with self.stream(prompt, **options) as events:
            async for event in events:
                builder.add(event)
        return builder.build()

    def stream(self, prompt: Prompt, **options: Unpack[GenerateOptions]) -> AsyncEventStream:
        """Complete ``prompt``; the events come as they happen, `Started` first, `Finished` last.

        Leaving the stream early cancels the request on the server: leave its ``async with`` block, close it, or
        drop it.
        """
        return AsyncEventStream(self._stub.Generate, self._options, generate_message(prompt, options))

    async def score(
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
        reply = await call_unary_async(self._stub.Score, message, self._options, timeout_s=timeout_s)
        return score_from_proto(reply)

    async def describe(self, *, timeout_s: float | None = None) -> BraidCard:
        """What the braid is made of. Raises: ProtocolVersionError, naming both versions."""
        request = braid_pb2.DescribeBraidRequest()
        message = await call_unary_async(self._stub.Describe, request, self._options, timeout_s=timeout_s)
        check_protocol(self.target, message.protocol_version)
        return card_from_proto(message)

    async def cancel(self, request_id: str) -> bool:
        """End a running request; False if there is none of that id."""
        request = braid_pb2.CancelRequest(request_id=request_id)
        return bool((await call_unary_async(self._stub.Cancel, request, self._options)).cancelled)

    async def close(self) -> None:
        """Close the connection; running streams end."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class AsyncEventStream:
    """The events of one request: an asynchronous iterator that must be used up or closed."""

    def __init__(
        self, method: Callable[..., Any], options: CallOptions, message: braid_pb2.GenerateRequest
    ) -> None:
        self._method = method
        self._attempts = Attempts(options, message)
        self._call: Any = None
        self._is_closed = False

    @property
    def request_id(self) -> str:
        """What `AsyncBraidClient.cancel` takes; empty before the first event is asked for."""
        return self._attempts.request_id

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        while True:
            if self._is_closed:  # perhaps during the pause before another attempt
                raise StopAsyncIteration
            if self._call is None:
                self._call = self._attempts.begin(self._method)
            try:
                message = await self._call.read()
            except asyncio.CancelledError:
                if _task_is_cancelled():
                    raise
                # gRPC says so too when the call was ended under us, by `aclose` or by the client's `close`.
                raise RequestCancelledError(
                    f"generate: request {self.request_id} was cancelled here"
                ) from None
            except grpc.RpcError as failure:
                error, pause_s = self._attempts.judge(failure)
                if pause_s is None:
                    raise error from None
            else:
                if message is grpc.aio.EOF:
                    raise StopAsyncIteration
                event = event_from_proto(message)
                if event is not None:
                    self._attempts.has_begun = True
                    return event
                continue
            self._call = None
            await asyncio.sleep(pause_s)

    async def aclose(self) -> None:
        """Cancel the request if it is still running. May be called more than once."""
        self._is_closed = True
        if self._call is not None:
            self._call.cancel()

    def __del__(self) -> None:
        # gRPC's tasks keep a running call alive when nobody else does.
        if self._call is not None and not self._call.done():
            self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


def _task_is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0

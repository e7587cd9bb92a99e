"""Server-sent events, and requests that end when their client hangs up. Knows no braid."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine, Iterable
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from braid_rpc.errors import RequestCancelledError

T = TypeVar("T")

# What ends a stream of chunks.
DONE = b"data: [DONE]\n\n"


def sse(data: object, event: str | None = None) -> bytes:
    """One server-sent event; ``data`` becomes one line of JSON."""
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue


async def unless_hung_up(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await the work, but cancel it as soon as the client is gone. Raises: RequestCancelledError then."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_hung_up(request.receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise RequestCancelledError("the client hung up before the answer was complete")
        return task.result()
    finally:
        for pending in (task, watcher):
            pending.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def first_of(request: Request, source: AsyncGenerator[T, None]) -> T:
    """The first item, awaited before a status is sent: a request that is refused gets a status of its own.

    Whatever goes wrong, ``source`` is closed, even if its item had come already. Raises: as `unless_hung_up`.
    """

    async def first() -> T:
        return await anext(source)

    try:
        return await unless_hung_up(request, first())
    except BaseException:
        await source.aclose()
        raise


class EventStream(Response):
    """Sends what ``chunks`` yields. However that ends, ``sources`` are closed: they may have been begun even
    if ``chunks`` never was."""

    media_type = "text/event-stream"

    def __init__(
        self, chunks: AsyncGenerator[bytes, None], sources: Iterable[AsyncGenerator[Any, None]]
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._chunks = chunks
        self._sources = list(sources)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the stream."""
        sender = asyncio.ensure_future(self._send(send))
        watcher = asyncio.ensure_future(_hung_up(receive))
        try:
            await asyncio.wait({sender, watcher}, return_when=asyncio.FIRST_COMPLETED)
            if sender.done():
                sender.result()
        finally:
            for pending in (sender, watcher):
                pending.cancel()
            await asyncio.gather(sender, watcher, return_exceptions=True)
            await self._chunks.aclose()
            for source in self._sources:
                await source.aclose()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._chunks) as chunks:
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

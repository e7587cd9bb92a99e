from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator

import pytest

from braid_orchestrator.http import create_app
from braid_orchestrator.http.merging import merge
from braid_orchestrator.serving.metrics import MeteredService

from ..fake_service import FakeService


class Connection:
    """An ASGI connection whose client hangs up when told to."""

    def __init__(self, path: str, body: dict) -> None:
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "path": path,
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
            "scheme": "http",
        }
        self.hang_up = asyncio.Event()
        self.sent: list[dict] = []
        self._body: bytes | None = json.dumps(body).encode()

    async def receive(self) -> dict:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.hang_up.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict) -> None:
        self.sent.append(message)


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_hangs_up_ends_its_request(path: str, stream: bool) -> None:
    service = FakeService()
    service.hang = True
    metered = MeteredService(service)
    app = create_app(lambda: metered, metered.render_metrics)
    connection = Connection(path, {"prompt": "x", "stream": stream})
    answering = asyncio.create_task(app(connection.scope, connection.receive, connection.send))
    async with asyncio.timeout(10):
        await service.first_token.wait()
        assert service.closed == 0
        connection.hang_up.set()
        await answering
    assert service.closed == 1


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
async def test_a_server_that_gives_up_a_connection_ends_its_request(path: str) -> None:
    service = FakeService()
    service.hang = True
    metered = MeteredService(service)
    app = create_app(lambda: metered, metered.render_metrics)
    connection = Connection(path, {"prompt": "x", "stream": True})
    answering = asyncio.create_task(app(connection.scope, connection.receive, connection.send))
    async with asyncio.timeout(10):
        await service.first_token.wait()
        answering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answering
    assert service.closed == 1


async def test_merging_loses_nothing_and_keeps_each_order() -> None:
    async def count(start: int) -> AsyncGenerator[int, None]:
        for i in range(start, start + 100):
            await asyncio.sleep(0)
            yield i

    merged = [i async for i in merge([count(0), count(1000), count(2000)])]
    assert sorted(merged) == [*range(100), *range(1000, 1100), *range(2000, 2100)]
    for start in (0, 1000, 2000):
        own = [i for i in merged if start <= i < start + 100]
        assert own == sorted(own)


async def test_leaving_a_merged_stream_closes_its_sources() -> None:
    closed = []

    async def endless(name: str) -> AsyncGenerator[str, None]:
        try:
            while True:
                await asyncio.sleep(0)
                yield name
        finally:
            closed.append(name)

    merged = merge([endless("a"), endless("b")])
    await anext(merged)
    await merged.aclose()
    assert sorted(closed) == ["a", "b"]

"""What stands before all routes: API keys, and bounds on a request's body."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI
from starlette.routing import BaseRoute

from braid_orchestrator.http import create_app
from braid_orchestrator.serving.api_keys import ApiKeys
from braid_orchestrator.serving.metrics import MeteredService
from braid_rpc.errors import UnavailableError

from ..fake_service import FakeService

KEY = {"Authorization": "Bearer open-sesame"}


def app_with(**options: object) -> FastAPI:
    metered = MeteredService(FakeService())
    return create_app(lambda: metered, metered.render_metrics, **options)  # type: ignore[arg-type]


def client_of(app: FastAPI) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://braid")


@pytest.fixture
def app() -> FastAPI:
    return app_with(get_keys=lambda: ApiKeys(["open-sesame"]))


@pytest.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as client:
        yield client


def addresses(app: FastAPI) -> set[tuple[str, str]]:
    """Every method and path that the application knows: its API, its documentation, and whatever is mounted."""
    documented = {
        (method.upper(), path) for path, methods in app.openapi()["paths"].items() for method in methods
    }
    known: set[tuple[str, str]] = set()

    def collect(routes: list[BaseRoute], prefix: str = "") -> None:
        for route in routes:
            path = prefix + getattr(route, "path", "")
            known.update((method, path) for method in getattr(route, "methods", None) or ())
            collect(getattr(route, "routes", None) or [], path)

    collect(app.routes)
    assert {("GET", "/openapi.json"), ("GET", "/docs")} <= known
    return known | documented | {("GET", "/nowhere"), ("POST", "/health/"), ("GET", "//health")}


async def test_every_route_asks_for_a_key_but_the_one_that_says_it_is_alive(
    app: FastAPI, http: httpx.AsyncClient
) -> None:
    found = addresses(app)
    assert len(found) > 20
    open_ = set()
    for method, path in sorted(found):
        path = path.replace("{model}", "pair")
        response = await http.request(method, path)
        if response.status_code != 401:
            open_.add((method, path))
            continue
        assert response.headers["www-authenticate"] == "Bearer"
        if method != "HEAD":
            assert response.json()["error"]["type"] == "AuthenticationError"
        wrong = await http.request(method, path, headers={"Authorization": "Bearer sesame"})
        assert wrong.status_code == 401
        assert (await http.request(method, path, headers=KEY)).status_code != 401
    assert open_ == {("GET", "/health")}


async def test_two_keys_at_once_are_none(http: httpx.AsyncClient) -> None:
    headers = [("Authorization", "Bearer open-sesame"), ("Authorization", "Bearer other")]
    assert (await http.get("/v1/models", headers=headers)).status_code == 401


async def test_without_keys_everything_is_open() -> None:
    async with client_of(app_with()) as http:
        assert (await http.get("/v1/models")).status_code == 200
        assert (await http.get("/metrics", headers={"Authorization": "Basic x"})).status_code == 200


async def test_nothing_is_open_before_the_keys_are_known() -> None:
    def not_yet() -> ApiKeys:
        raise UnavailableError("the orchestrator is starting", retry_after_s=1.0)

    async with client_of(app_with(get_keys=not_yet)) as http:
        assert (await http.get("/v1/models", headers=KEY)).status_code == 503
        assert (await http.get("/health")).status_code == 200


async def test_a_body_that_says_it_is_too_large_is_not_read() -> None:
    read = 0

    async def parts() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(100):
            read += 1
            yield b" " * 1000

    async with client_of(app_with(max_body_bytes=10_000)) as http:
        headers = {"Content-Length": "100000", "Content-Type": "application/json"}
        response = await http.post("/generate", content=parts(), headers=headers)
        assert response.status_code == 413
        assert "got 100000 bytes, expected at most 10000" in response.json()["error"]["message"]
        assert read <= 1
        response = await http.post("/generate", content=parts(), headers=headers | {"Content-Length": "0"})
        assert response.status_code == 413
        assert read <= 13


async def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    sent: list[dict] = []
    pieces = [{"type": "http.request", "body": b'{"prompt"', "more_body": True}]

    async def receive() -> dict:
        if pieces:
            return pieces.pop()
        await asyncio.Event().wait()
        raise AssertionError("nothing sets this event")

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/generate",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "scheme": "http",
        "server": ("braid", 80),
        "client": ("127.0.0.1", 1),
    }
    async with asyncio.timeout(10):
        await app_with(body_patience_s=0.05)(scope, receive, send)
    assert sent[0]["status"] == 408
    assert b"got 9 bytes and no more within 0.05 s" in sent[1]["body"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"prompt": "\xff"}', "body: got bytes that are not UTF-8 at 12"),
        (b"\xff\xfe{\x00", "body: "),
        (b'{"prompt": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"prompt": "x", "seed": ' + b"1" * 5000 + b"}", "body: got what is no JSON"),
        (b'{"prompt": "x", "temperature": NaN}', "temperature: got nan"),
        (b'{"prompt": "x", "timeout_s": Infinity}', "timeout_s: got inf"),
        (b'{"prompt": "x", "request_id": "\\ud800"}', "request_id: "),
        (b'{"prompt": "x", "model": "\\ud800"}', "model: got "),
        (b"[]", "body: got []"),
        (b"", "body: missing"),
    ],
)
async def test_bytes_that_are_no_request_are_told_so(content: bytes, words: str) -> None:
    async with client_of(app_with()) as http:
        response = await http.post("/generate", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code in (400, 404), response.text
    assert words in response.json()["error"]["message"]

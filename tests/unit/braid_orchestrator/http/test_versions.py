"""Versions of the fusion weights over HTTP."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from braid_fusion.plan import BraidPlan
from braid_rpc.publishing import MAX_CARD_BYTES
from braid_rpc.version_archive import ENVELOPE_BYTES, write_archive

from ..fake_service import FakeService

PATH = "/v1/fusion/versions"
LIMIT = 20_000 + MAX_CARD_BYTES + ENVELOPE_BYTES


async def test_what_is_active_comes_with_what_a_new_version_has_to_fit(
    http: httpx.AsyncClient, service: FakeService
) -> None:
    told = (await http.get(f"{PATH}/active")).json()
    assert told.keys() == {"active", "max_publish_bytes", "plan"}
    assert (told["active"], told["max_publish_bytes"]) == ("v1", 20_000)
    assert BraidPlan.from_json(json.dumps(told["plan"])) == service.plan


async def test_weights_are_activated_by_version(http: httpx.AsyncClient) -> None:
    response = await http.post(f"{PATH}/activate", json={"version": "v2"})
    assert response.json() == {"active": "v2"}
    response = await http.post(f"{PATH}/activate", json={"version": "v9"})
    assert response.status_code == 404
    assert response.json()["error"]["type"] == "UnknownVersionError"


async def test_a_version_is_published_as_an_archive(http: httpx.AsyncClient, service: FakeService) -> None:
    data = bytes(19_000)  # more than a body may have elsewhere
    response = await http.post(f"{PATH}?version=v7", content=write_archive('{"a": 1}', data))
    assert response.status_code == 200
    assert response.json() == {"version": "v7", "active": "v7", "in_memory_only": True}
    response = await http.post(f"{PATH}?activate=false", content=write_archive("{}", data))
    assert response.json() == {"version": "picked", "active": "v7", "in_memory_only": True}
    assert service.published == [('{"a": 1}', data, "v7", True), ("{}", data, "", False)]


@pytest.mark.parametrize(
    ("query", "content", "status", "words"),
    [
        ("", b"", 400, "body: got 0 bytes that are no tar"),
        ("", b'{"version": "v2"}', 400, "body: got 17 bytes that are no tar"),
        ("?activate=perhaps", write_archive("{}", b""), 400, "activate: got 'perhaps'"),
        ("?version=v1", write_archive("{}", b""), 409, "which is there already"),
        ("", bytes(LIMIT + 1), 413, f"body: got {LIMIT + 1} bytes, expected at most {LIMIT}"),
    ],
)
async def test_what_is_no_version_is_refused(
    http: httpx.AsyncClient, service: FakeService, query: str, content: bytes, status: int, words: str
) -> None:
    response = await http.post(PATH + query, content=content)
    assert response.status_code == status
    assert words in response.json()["error"]["message"]
    assert not service.published and service.version == "v1"


async def test_only_so_many_bodies_are_held_at_a_time(http: httpx.AsyncClient, service: FakeService) -> None:
    go, waiting = asyncio.Event(), asyncio.Semaphore(0)
    publish = service.publish

    async def slow(*args: object, **options: object) -> object:
        waiting.release()
        await go.wait()
        return await publish(*args, **options)  # type: ignore[arg-type]

    service.publish = slow  # type: ignore[method-assign,assignment]
    body = write_archive("{}", b"x")
    running = [asyncio.create_task(http.post(PATH, content=body)) for _ in range(2)]
    for _ in running:
        await waiting.acquire()
    refused = await http.post(PATH, content=body)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    go.set()
    assert [(await one).status_code for one in running] == [200, 200]
    assert (await http.post(PATH, content=body)).status_code == 200


async def test_a_published_version_is_logged(
    http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "braid_orchestrator")
    await http.post(f"{PATH}?version=v7&activate=false", content=write_archive("{}", b"x"))
    (record,) = [one for one in caplog.records if "published" in one.msg]
    assert (record.__dict__["version"], record.__dict__["weights_version"]) == ("v7", "v1")

from __future__ import annotations

import httpx
import pytest

from braid_orchestrator.engine.requests import GenerateRequest
from braid_orchestrator.http import create_app
from braid_orchestrator.serving.api_keys import ApiKeys
from braid_rpc.errors import RateLimitError

from ..fake_service import FakeService

WORK = {
    "/generate": {"prompt": "x"},
    "/score": {"prompt": "x"},
    "/v1/completions": {"model": "pair", "prompt": "x"},
    "/v1/chat/completions": {"model": "pair", "messages": [{"role": "user", "content": "x"}]},
    "/v1/requests/orphan/resume": {},
}


@pytest.mark.parametrize("path", WORK)
async def test_who_asks_too_much_is_told_when_to_come_back(
    http: httpx.AsyncClient, service: FakeService, path: str
) -> None:
    service.too_many = RateLimitError("rate limit: got request 3", retry_after_s=17.2)
    answer = await http.post(path, json=WORK[path])
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "18"
    assert answer.json()["error"]["type"] == "RateLimitError"
    assert service.requests == []


async def test_callers_are_told_apart_by_address_for_keys_can_be_made_up(
    http: httpx.AsyncClient, service: FakeService
) -> None:
    await http.post("/generate", json=WORK["/generate"], headers={"Authorization": "Bearer one"})
    await http.post("/generate", json=WORK["/generate"])
    assert service.callers == ["address 127.0.0.1"] * 2


async def test_callers_are_told_apart_by_key_where_one_is_asked_for(service: FakeService) -> None:
    keys = ApiKeys(["one", "other"])
    app = create_app(lambda: service, bytes, get_keys=lambda: keys)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://braid") as http:
        for given in ("Bearer one", "bearer  one", "Bearer other", "Bearer unknown"):
            await http.post("/generate", json=WORK["/generate"], headers={"Authorization": given})
    assert service.callers == ["key one", "key one", "key other"]


async def test_looking_after_the_service_is_not_counted(
    http: httpx.AsyncClient, service: FakeService
) -> None:
    service.too_many = RateLimitError("rate limit: got request 3", retry_after_s=17.2)
    for path in ("/health", "/ready", "/metrics", "/v1/models", "/v1/requests"):
        assert (await http.get(path)).status_code == 200


async def test_an_orphaned_request_is_carried_on(http: httpx.AsyncClient, service: FakeService) -> None:
    service.orphaned = {name: GenerateRequest("x", request_id=name) for name in ("one", "two")}
    assert (await http.get("/v1/requests")).json() == {"orphaned": ["one", "two"]}
    whole = (await http.post("/v1/requests/one/resume")).json()
    assert (whole["request_id"], whole["text"]) == ("one", "one two three")
    streamed = await http.post("/v1/requests/two/resume", params={"stream": True})
    assert [line for line in streamed.text.splitlines() if line.startswith("event: ")] == [
        f"event: {name}" for name in ("started", "token", "token", "token", "choice_finished", "finished")
    ]
    assert (await http.post("/v1/requests/one/resume")).status_code == 404

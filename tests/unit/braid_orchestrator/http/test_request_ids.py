"""Ids of requests, from a client's header to the log."""

from __future__ import annotations

import json
import logging

import httpx
import pytest

from braid_orchestrator.logs import formatter
from braid_rpc.errors import InvalidRequestError, RateLimitError, UnavailableError

from ..fake_service import WORDS, FakeService

MINE = {"X-Request-Id": "trace-01/a:b"}
SECRET = "the quick brown fox"


def logged(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    form = formatter("json")
    return [json.loads(form.format(record)) for record in caplog.records if "request" in record.msg]


@pytest.fixture(autouse=True)
def _all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "braid_orchestrator")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"prompt": SECRET}),
        ("/generate", {"prompt": SECRET, "stream": True}),
        ("/v1/completions", {"prompt": SECRET}),
        ("/v1/completions", {"prompt": SECRET, "stream": True}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": SECRET}]}),
    ],
)
async def test_the_clients_id_is_the_engines_the_responses_and_the_logs(
    http: httpx.AsyncClient,
    service: FakeService,
    caplog: pytest.LogCaptureFixture,
    path: str,
    body: dict[str, object],
) -> None:
    response = await http.post(path, json=body, headers=MINE)
    assert response.status_code == 200
    assert response.headers["x-request-id"] == MINE["X-Request-Id"]
    assert [request.request_id for request in service.requests] == [MINE["X-Request-Id"]]
    (line,) = logged(caplog)
    assert line["event"] == "request finished" and line["level"] == "info"
    assert line["request_id"] == MINE["X-Request-Id"]
    assert (line["route"], line["model"], line["operation"]) == (path, "pair", "generate")
    assert (line["prompt_tokens"], line["completion_tokens"], line["finish_reasons"]) == (2, 3, ["stop"])
    assert line["weights_version"] == "v1"
    assert 0 <= line["queue_s"] <= line["time_to_first_token_s"] <= line["total_s"]  # type: ignore[operator]
    assert SECRET not in str(line) and not any(word.strip() in str(line) for word in WORDS)


async def test_ids_are_made_up_where_none_is_given(http: httpx.AsyncClient, service: FakeService) -> None:
    for path, prefix in (("/generate", ""), ("/v1/completions", "cmpl-")):
        response = await http.post(path, json={"prompt": "x"})
        request_id = service.requests[-1].request_id
        assert response.headers["x-request-id"] == request_id
        assert request_id.startswith(prefix) and len(request_id) == len(prefix) + 32
    assert len((await http.get("/health")).headers["x-request-id"]) == 32


async def test_an_id_in_the_body_counts_more(http: httpx.AsyncClient, service: FakeService) -> None:
    response = await http.post("/generate", json={"prompt": "x", "request_id": "own"}, headers=MINE)
    assert service.requests[-1].request_id == response.headers["x-request-id"] == "own"
    response = await http.post("/generate", json={"prompt": "x", "request_id": "a\r\nSet-Cookie: b"})
    assert response.status_code == 200
    assert "x-request-id" not in response.headers and "set-cookie" not in response.headers


async def test_each_of_several_prompts_has_an_id_of_its_own(
    http: httpx.AsyncClient, service: FakeService
) -> None:
    await http.post("/v1/completions", json={"prompt": ["x", "y"]}, headers=MINE)
    ids = sorted(request.request_id for request in service.requests)
    assert ids == ["trace-01/a:b-0", "trace-01/a:b-1"]


@pytest.mark.parametrize("wrong", ["", "with space", "x" * 129, "é"])
async def test_ids_that_cannot_be_are_refused(http: httpx.AsyncClient, wrong: str) -> None:
    response = await http.post("/generate", json={"prompt": "x"}, headers={"X-Request-Id": wrong.encode()})  # type: ignore[dict-item]
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith("X-Request-Id: got ")


async def test_what_failed_is_logged_with_its_type(
    http: httpx.AsyncClient, service: FakeService, caplog: pytest.LogCaptureFixture
) -> None:
    service.error = UnavailableError("shard 'left' is away")
    await http.post("/generate", json={"prompt": SECRET}, headers=MINE)
    service.error = None
    service.error_after_first = UnavailableError("shard 'left' is away")
    await http.post("/generate", json={"prompt": SECRET}, headers=MINE)
    service.error = InvalidRequestError(f"prompt: got {SECRET!r}, expected something else")
    await http.post("/generate", json={"prompt": SECRET}, headers=MINE)
    refused, failed, invalid = logged(caplog)
    assert refused["event"] == "request refused" and refused["level"] == "warning"
    assert refused["error_message"] == "shard 'left' is away"
    assert failed["event"] == "request failed" and failed["completion_tokens"] == 1
    assert invalid["error"] == "InvalidRequestError" and invalid["level"] == "info"
    assert {line["request_id"] for line in (refused, failed, invalid)} == {MINE["X-Request-Id"]}
    assert SECRET not in str([refused, failed, invalid])


async def test_who_sends_too_many_is_logged(
    http: httpx.AsyncClient, service: FakeService, caplog: pytest.LogCaptureFixture
) -> None:
    service.too_many = RateLimitError("too many", retry_after_s=1.0)
    response = await http.post("/generate", json={"prompt": "x"}, headers=MINE)
    assert response.status_code == 429
    (line,) = logged(caplog)
    assert (line["event"], line["error"]) == ("request refused", "RateLimitError")
    assert (line["request_id"], line["route"]) == (MINE["X-Request-Id"], "/generate")


async def test_a_new_version_is_logged(http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    await http.post("/v1/fusion/versions/activate", json={"version": "v2"})
    (record,) = [one for one in caplog.records if "activated" in one.msg]
    assert record.__dict__["weights_version"] == "v2"

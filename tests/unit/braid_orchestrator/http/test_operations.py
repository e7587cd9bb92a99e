from __future__ import annotations

import httpx
import pytest

from braid_rpc.errors import UnavailableError

from ..fake_service import FakeService


async def test_alive_is_not_ready(http: httpx.AsyncClient, service: FakeService) -> None:
    service.not_ready = UnavailableError("shard 'right': no answer", retry_after_s=1.0)
    assert (await http.get("/health")).status_code == 200
    response = await http.get("/ready")
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json()["error"]["message"] == "shard 'right': no answer"
    service.not_ready = None
    assert (await http.get("/ready")).json() == {"status": "ready"}


async def test_models_are_the_braid_and_its_shards(http: httpx.AsyncClient) -> None:
    models = (await http.get("/v1/models")).json()["data"]
    assert [model["id"] for model in models] == ["pair", "left", "right"]
    assert (await http.get("/v1/models/right")).json()["root"] == "models/right"
    assert (await http.get("/v1/models/middle")).status_code == 404


async def test_metrics_count_what_was_answered(http: httpx.AsyncClient) -> None:
    await http.post("/generate", json={"prompt": "x"})
    await http.post("/generate", json={"prompt": "x", "stream": True})
    lines = dict(
        line.rsplit(" ", 1) for line in (await http.get("/metrics")).text.splitlines() if line[0] != "#"
    )
    assert float(lines["braid_completion_tokens_total"]) == 6
    assert float(lines["braid_prompt_tokens_total"]) == 4
    assert float(lines['braid_choices_finished_total{reason="stop"}']) == 2
    assert float(lines['braid_request_seconds_count{operation="generate",outcome="finished"}']) == 2
    assert float(lines["braid_time_to_first_token_seconds_count"]) == 2
    assert float(lines["braid_time_per_output_token_seconds_count"]) == 4
    assert float(lines["braid_requests_running"]) == 1
    assert float(lines["braid_requests_waiting"]) == 2
    assert float(lines['braid_cache_free_bytes{shard="right"}']) == 20


async def test_errors_are_counted_by_type(http: httpx.AsyncClient, service: FakeService) -> None:
    service.error = UnavailableError("gone")
    await http.post("/generate", json={"prompt": "x"})
    text = (await http.get("/metrics")).text
    assert 'braid_request_seconds_count{operation="generate",outcome="UnavailableError"} 1.0' in text


async def test_openapi_describes_every_route(http: httpx.AsyncClient) -> None:
    paths = (await http.get("/openapi.json")).json()["paths"]
    for path in ("/generate", "/score", "/v1/completions", "/v1/models", "/health", "/ready", "/metrics"):
        assert path in paths
    assert (await http.get("/docs")).status_code == 200


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/generate", 405)])
async def test_wrong_addresses_answer_in_the_same_shape(
    http: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    response = await http.request(method, path)
    assert response.status_code == status
    assert path in response.json()["error"]["message"]


async def test_responses_are_counted_by_route_and_status(
    http: httpx.AsyncClient, service: FakeService
) -> None:
    service.error = UnavailableError("gone")
    await http.post("/generate", json={"prompt": "x"})
    await http.post("/generate", json={"prompt": 1})
    await http.post("/generate", content=b"x" * 20_000)
    await http.get("/v1/models/left")
    await http.get("/v1/models/right")
    await http.get("/nowhere/at/all")
    await http.request("BREW", "/nowhere")
    text = (await http.get("/metrics")).text
    for route, method, status, count in (
        ("/generate", "POST", 503, 1),
        ("/generate", "POST", 400, 1),
        ("/generate", "POST", 413, 1),
        ("/v1/models/{model}", "GET", 200, 2),
        ("other", "GET", 404, 1),
        ("other", "other", 404, 1),
    ):
        line = f'braid_http_requests_total{{method="{method}",route="{route}",status="{status}"}} {count}.0'
        assert line in text
    assert "nowhere" not in text and "BREW" not in text

"""What is seen from outside of a braid that serves: ids, figures, timings."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from served import served

from braid_rpc import BraidClient

ENDLESS = {"prompt": "abc", "max_tokens": 200, "ignore_eos": True, "stream": True}


def test_a_request_is_cancelled_by_the_clients_own_id() -> None:
    with served() as braid, braid.http() as http:
        for path in ("/generate", "/v1/completions"):
            headers = {"X-Request-Id": f"mine{path}"}
            with http.stream("POST", path, json=ENDLESS, headers=headers) as response:
                assert response.headers["x-request-id"] == headers["X-Request-Id"]
                lines = response.iter_lines()
                next(lines)
                cancelled = http.post("/cancel", json={"request_id": headers["X-Request-Id"]})
                assert cancelled.json() == {"cancelled": True}
                assert "RequestCancelledError" in "".join(lines)
        braid.wait_until_idle()


def test_figures_over_http_pass_prometheus_own_parser() -> None:
    with served() as braid, braid.http() as http:
        http.post("/generate", json={"prompt": "abc", "max_tokens": 2, "ignore_eos": True})
        response = http.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain")
        families = {family.name: family for family in text_string_to_metric_families(response.text)}
        [tokens] = families["braid_completion_tokens"].samples
        assert tokens.value == 2
        routes = {sample.labels["route"] for sample in families["braid_http_requests"].samples}
        assert routes == {"/generate"}


def step_times(timings: dict[str, Any], *, num_steps: int, num_spans: int) -> None:
    """Checks what is told of a braided request of tiny models, alone in its batches."""
    steps = timings["steps"]
    assert steps["count"] == num_steps
    assert steps["shards"].keys() == {"left", "right"} and steps["points"].keys() == {"1", "2"}
    for part in steps["shards"].values():
        assert part["count"] == num_steps * num_spans
        assert 0 < part["compute_s"] < steps["wall_s"]
    for part in steps["points"].values():
        assert part["count"] == num_steps
        assert 0 < part["compute_s"] < steps["wall_s"]
    assert 0 < steps["readout_s"] < steps["wall_s"] < timings["total_s"]


def test_timings_are_told_to_those_who_ask() -> None:
    asked = {"max_tokens": 3, "temperature": 0, "ignore_eos": True, "timings": True}
    with served() as braid, braid.http() as http:
        told = http.post("/generate", json={"prompt": "abc", **asked}).json()["timings"]
        step_times(told, num_steps=3, num_spans=3)
        assert 0 < told["time_per_output_token_s"] < told["total_s"]

        completion = http.post("/v1/completions", json={"prompt": ["abc", "d"], **asked}).json()
        assert [one["steps"]["points"].keys() for one in completion["timings"]] == [{"1", "2"}] * 2
        streamed = http.post("/v1/completions", json={"prompt": "abc", "stream": True, **asked}).text
        last = json.loads(streamed.split("data: ")[-2])
        assert last["choices"] == [] and last["usage"] is None
        step_times(last["timings"][0], num_steps=3, num_spans=3)
        messages = [{"role": "user", "content": "x"}]
        step_times(
            http.post("/v1/chat/completions", json={"messages": messages, **asked}).json()["timings"],
            num_steps=3,
            num_spans=3,
        )
        streamed = http.post(
            "/v1/chat/completions", json={"messages": messages, "stream": True, **asked}
        ).text
        step_times(json.loads(streamed.split("data: ")[-2])["timings"], num_steps=3, num_spans=3)

        with BraidClient(braid.grpc_target) as client:
            answer = client.generate("abc", max_tokens=3, temperature=0, ignore_eos=True, timings=True)
            step_times(asdict(answer.timings), num_steps=3, num_spans=3)
            plain = client.generate("abc", max_tokens=3)
            assert plain.timings.steps is None and plain.timings.time_per_output_token_s is None


def test_who_does_not_ask_is_told_nothing() -> None:
    with served() as braid, braid.http() as http:
        body = {"prompt": "abc", "max_tokens": 2}
        told = http.post("/generate", json=body).json()["timings"]
        assert told.keys() == {"queue_s", "time_to_first_token_s", "total_s"}
        assert "timings" not in http.post("/v1/completions", json=body).json()
        assert "timings" not in http.post("/v1/completions", json={**body, "stream": True}).text
        messages = [{"role": "user", "content": "x"}]
        chat = {"messages": messages, "max_tokens": 2}
        assert "timings" not in http.post("/v1/chat/completions", json=chat).json()


@pytest.mark.parametrize("model", ["tiny", "left"])
def test_a_shard_alone_tells_of_itself_only_whatever_runs_beside_it(model: str) -> None:
    with served() as braid, braid.http() as http:
        with http.stream("POST", "/generate", json={**ENDLESS, "model": model}) as beside:
            lines = beside.iter_lines()  # kept: when it is gone, the response is closed
            next(lines)
            body = {"prompt": "abc", "max_tokens": 4, "ignore_eos": True, "timings": True, "model": "right"}
            told = http.post("/generate", json=body).json()["timings"]
        steps = told["steps"]
        assert steps["shards"].keys() == {"right"} and steps["points"] == {} and steps["readout_s"] == 0
        assert steps["shards"]["right"]["count"] == steps["count"] == 4
        braid.wait_until_idle()

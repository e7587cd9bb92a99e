"""What is seen from outside of a braid that serves: ids, figures."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families
from served import served

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

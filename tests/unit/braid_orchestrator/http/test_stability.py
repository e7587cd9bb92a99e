"""How stable a text is, over HTTP: who asks is told, in native words or in those that other clients know."""

from __future__ import annotations

import json

import httpx
import pytest

from braid_rpc.stability import StabilityOptions

from ..fake_service import FakeService

TOKEN = {
    "entropy": 1.5,
    "lyapunov_estimate": None,
    "temperature": 0.75,
    "coherence": 0.25,
    "kuramoto_order": None,
}
CHOICE = {
    "mean_entropy": 1.5,
    "mean_coherence": 0.25,
    "mean_kuramoto_order": None,
    "lyapunov_estimate": 0.125,
    "is_stable": False,
}


async def test_tokens_and_choices_are_told_of(http: httpx.AsyncClient, service: FakeService) -> None:
    body = {"prompt": "x", "n": 2, "stability": {}}
    answer = (await http.post("/generate", json=body)).json()
    assert service.requests[-1].stability == StabilityOptions()
    assert answer["stability"] == CHOICE and answer["tokens"][0]["stability"] == TOKEN
    assert [choice["stability"] for choice in answer["choices"]] == [CHOICE, CHOICE]


async def test_so_are_those_of_a_stream(http: httpx.AsyncClient) -> None:
    body = {"prompt": "x", "stream": True, "stability": {"stop": True}}
    blocks = (await http.post("/generate", json=body)).text.strip().split("\n\n")
    events = [json.loads(block.split("data: ")[1]) for block in blocks]
    assert [event["stability"] for event in events[1:4]] == [TOKEN] * 3
    assert events[4]["stability"] == CHOICE and events[4]["finish_reason"] == "instability"


async def test_who_does_not_ask_is_told_nothing(http: httpx.AsyncClient) -> None:
    for body in ({"prompt": "x"}, {"prompt": "x", "stability": None}, {"prompt": "x", "stream": True}):
        assert "stability" not in (await http.post("/generate", json=body)).text


async def test_every_option_reaches_the_engine(http: httpx.AsyncClient, service: FakeService) -> None:
    options = {"stop": True, "auto_temperature": True, "threshold": 0.5, "window": 9, "min_tokens": 7}
    messages = [{"role": "user", "content": "x"}]
    for path, body in (
        ("/generate", {"prompt": "x"}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/chat/completions", {"messages": messages}),
    ):
        assert (await http.post(path, json={**body, "stability": options})).status_code == 200
        assert service.requests[-1].stability == StabilityOptions(**options)


@pytest.mark.parametrize("stream", [False, True])
async def test_other_clients_see_a_text_that_was_stopped(http: httpx.AsyncClient, stream: bool) -> None:
    asked = {"stability": {"stop": True}, "stream": stream}
    messages = [{"role": "user", "content": "x"}]
    for path, body in (
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/chat/completions", {"messages": messages}),
    ):
        text = (await http.post(path, json={**body, **asked})).text
        answer = json.loads(text.strip().split("\n\n")[-2].removeprefix("data: ") if stream else text)
        choice = answer["choices"][0]
        assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "instability")


@pytest.mark.parametrize(
    ("stability", "words"),
    [
        ({"window": 2}, "stability.window: got 2, expected between 4 and 128"),
        ({"threshold": -1.0}, "stability.threshold: got -1.0"),
        ({"min_tokens": 1}, "stability.min_tokens: got 1"),
        ({"halt": True}, "stability.halt"),
        ({"stop": 1}, "stability.stop"),
        (True, "stability"),
    ],
)
async def test_wrong_values_are_refused_by_name(
    http: httpx.AsyncClient, stability: object, words: str
) -> None:
    for path in ("/generate", "/v1/completions"):
        answer = await http.post(path, json={"prompt": "x", "stability": stability})
        assert answer.status_code == 400 and words in answer.json()["error"]["message"]

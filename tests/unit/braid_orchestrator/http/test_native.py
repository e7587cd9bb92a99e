from __future__ import annotations

import json
import math

import httpx
import pytest

from braid_rpc.errors import QueueFullError, UnavailableError

from ..fake_service import FakeService


def events_of(text: str) -> list[tuple[str, dict]]:
    events = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return events


async def test_generate_tells_text_tokens_weights_reason_and_timings(http: httpx.AsyncClient) -> None:
    answer = (await http.post("/generate", json={"prompt": "x", "logprobs": 1, "request_id": "mine"})).json()
    assert answer["text"] == "one two three"
    assert [token["id"] for token in answer["tokens"]] == [10, 11, 12]
    assert answer["tokens"][0]["weights"] == {"left": 0.75, "right": 0.25}
    assert answer["tokens"][0]["logprob"] == -0.5
    # JSON has no infinities
    assert answer["tokens"][0]["alternatives"] == [{"id": 99, "text": "other", "logprob": -9999.0}]
    assert answer["weights"] == {"left": 0.75, "right": 0.25}
    assert (answer["finish_reason"], answer["stop_reason"]) == ("stop", None)
    assert (answer["request_id"], answer["model"], answer["weights_version"]) == ("mine", "pair", "v1")
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    assert answer["timings"] == {"queue_s": 0.1, "time_to_first_token_s": 0.2, "total_s": 0.3}
    assert "choices" not in answer


async def test_several_choices_are_all_told(http: httpx.AsyncClient) -> None:
    answer = (await http.post("/generate", json={"prompt": "x", "n": 3})).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert all(choice["text"] == answer["text"] for choice in answer["choices"])


async def test_streamed_events_make_up_the_same_text(http: httpx.AsyncClient) -> None:
    response = await http.post("/generate", json={"prompt": "x", "stream": True})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = events_of(response.text)
    assert [name for name, _ in events] == ["started", *["token"] * 3, "choice_finished", "finished"]
    assert "".join(data.get("text", "") for _, data in events) == "one two three"
    assert events[-1][1]["usage"]["completion_tokens"] == 3


async def test_every_option_reaches_the_engine(http: httpx.AsyncClient, service: FakeService) -> None:
    options = {
        "max_tokens": 7,
        "min_tokens": 2,
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.9,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "seed": 9,
        "ignore_eos": True,
        "logprobs": 2,
    }
    body = options | {
        "prompt": [4, 5],
        "logit_bias": {"6": -1.5},
        "stop": "end",
        "stop_token_ids": [8],
        "timeout_s": 3.0,
    }
    assert (await http.post("/generate", json=body)).status_code == 200
    [request] = service.requests
    assert request.prompt == (4, 5)
    assert {name: getattr(request.sampling, name) for name in options} == options
    assert request.sampling.logit_bias == {6: -1.5}
    assert request.sampling.stop == ("end",)
    assert request.sampling.stop_token_ids == (8,)
    assert request.timeout_s == 3.0


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({}, (True, None, "pair")),
        ({"model": "pair"}, (True, None, "pair")),
        ({"model": "right"}, (False, "right", "right")),
        ({"use_braiding": False}, (False, None, "left")),
        ({"use_braiding": False, "shard": "right"}, (False, "right", "right")),
    ],
)
async def test_a_model_is_the_braid_or_one_shard_alone(
    http: httpx.AsyncClient, service: FakeService, choice: dict, expected: tuple
) -> None:
    answer = (await http.post("/generate", json={"prompt": "x", **choice})).json()
    [request] = service.requests
    assert (request.use_braiding, request.shard, answer["model"]) == expected


@pytest.mark.parametrize(
    ("body", "status", "param", "words"),
    [
        ({}, 400, "prompt", "missing"),
        ({"prompt": ""}, 400, "prompt", "empty"),
        ({"prompt": "x", "temperature": -1}, 400, "temperature", "got -1.0, expected between 0"),
        ({"prompt": "x", "temperature": "warm"}, 400, "temperature", "got 'warm', expected a valid number"),
        ({"prompt": "x", "max_tokens": 0}, 400, "max_tokens", "got 0, expected at least 1"),
        ({"prompt": "x", "max_tokens": 1.5}, 400, "max_tokens", "1.5"),
        ({"prompt": "x", "max_tokens": "9"}, 400, "max_tokens", "'9'"),
        ({"prompt": "x", "max_token": 9}, 400, "max_token", "unknown field"),
        ({"prompt": "x", "logit_bias": {"six": 1}}, 400, "logit_bias", "'six'"),
        ({"prompt": "x", "n": 0}, 400, "n", "got 0"),
        ({"prompt": "x", "stop": [""]}, 400, "stop", "not empty"),
        ({"prompt": "x", "shard": "left"}, 400, "shard", "use_braiding"),
        ({"prompt": "x", "use_braiding": 1}, 400, "use_braiding", "got 1, expected true, false or 'auto'"),
        ({"prompt": "x", "use_braiding": "no"}, 400, "use_braiding", "'no', expected true, false or 'auto'"),
        ({"prompt": "x", "model": "left", "use_braiding": True}, 400, "use_braiding", "'left'"),
        ({"prompt": "x", "model": "middle"}, 404, None, "got 'middle', expected 'pair'"),
    ],
)
async def test_a_bad_request_is_told_which_field_got_what(
    http: httpx.AsyncClient, service: FakeService, body: dict, status: int, param: str | None, words: str
) -> None:
    response = await http.post("/generate", json=body)
    error = response.json()["error"]
    assert response.status_code == error["code"] == status
    assert error["param"] == param
    assert words in error["message"]
    assert service.requests == []


async def test_what_is_not_json_is_said_so(http: httpx.AsyncClient) -> None:
    response = await http.post(
        "/generate", content=b'{"prompt":', headers={"content-type": "application/json"}
    )
    assert response.status_code == 400
    assert "not valid JSON" in response.json()["error"]["message"]


async def test_a_body_beyond_the_limit_is_refused(http: httpx.AsyncClient) -> None:
    response = await http.post("/generate", json={"prompt": "x" * 20_000})
    assert response.status_code == 413
    assert "10000" in response.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_full_queue_says_when_to_come_back(
    http: httpx.AsyncClient, service: FakeService, stream: bool
) -> None:
    service.error = QueueFullError("queue: got a request while 4 wait, expected fewer", retry_after_s=1.2)
    response = await http.post("/generate", json={"prompt": "x", "stream": stream})
    assert response.status_code == 429
    assert response.headers["retry-after"] == "2"
    assert response.json()["error"]["type"] == "QueueFullError"
    assert response.json()["error"]["retry_after_s"] == 1.2


async def test_a_failure_within_a_stream_is_its_last_event(
    http: httpx.AsyncClient, service: FakeService
) -> None:
    service.error_after_first = UnavailableError("shard 'right': gone")
    events = events_of((await http.post("/generate", json={"prompt": "x", "stream": True})).text)
    assert [name for name, _ in events] == ["started", "token", "error"]
    assert events[-1][1]["error"]["type"] == "UnavailableError"


@pytest.mark.parametrize("stream", [False, True])
async def test_no_traceback_reaches_a_user(
    http: httpx.AsyncClient, service: FakeService, stream: bool
) -> None:
    service.error = RuntimeError("secret detail")
    response = await http.post("/generate", json={"prompt": "x", "stream": stream})
    assert response.status_code == 500
    assert "secret" not in response.text
    assert response.json()["error"]["type"] == "BraidError"


async def test_no_traceback_ends_a_stream(http: httpx.AsyncClient, service: FakeService) -> None:
    service.error_after_first = RuntimeError("secret detail")
    text = (await http.post("/generate", json={"prompt": "x", "stream": True})).text
    assert "secret" not in text
    assert events_of(text)[-1][0] == "error"


async def test_score_gives_bits_per_byte(http: httpx.AsyncClient, service: FakeService) -> None:
    answer = (await http.post("/score", json={"prompt": "abc", "model": "right"})).json()
    assert answer["logprobs"] == [0.0, -1.0, -2.0]
    assert answer["total_logprob"] == -3.0
    assert answer["bits_per_byte"] == pytest.approx(3.0 / math.log(2) / 3)
    assert answer["model"] == "right"
    assert service.scored[0].shard == "right"


async def test_cancel_says_whether_there_was_anything(http: httpx.AsyncClient) -> None:
    assert (await http.post("/cancel", json={"request_id": "known"})).json() == {"cancelled": True}
    assert (await http.post("/cancel", json={"request_id": "other"})).json() == {"cancelled": False}


async def test_describe_names_the_parts(http: httpx.AsyncClient) -> None:
    answer = (await http.get("/describe")).json()
    assert [shard["name"] for shard in answer["shards"]] == ["left", "right"]
    assert answer["points"][0]["layers"] == [1, 2]

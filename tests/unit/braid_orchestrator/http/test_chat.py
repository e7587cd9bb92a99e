from __future__ import annotations

import httpx
import pytest

from braid_rpc.errors import QueueFullError, UnavailableError

from ..fake_service import FakeService
from .test_completions import chunks_of

ASKED = [{"role": "user", "content": "the"}]
PATH = "/v1/chat/completions"


async def test_an_answer_has_the_shape_that_clients_expect(
    http: httpx.AsyncClient, service: FakeService
) -> None:
    answer = (await http.post(PATH, json={"model": "pair", "messages": ASKED})).json()
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    [choice] = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "one two three", "refusal": None}
    assert (choice["finish_reason"], choice["logprobs"]) == ("stop", None)
    [request] = service.requests
    assert service.text().decode(request.prompt) == "\nuser: the\nassistant:"
    # All that there is room for, unless told otherwise.
    assert request.sampling.max_tokens == 64 - len(request.prompt)


async def test_streamed_chunks_begin_with_the_role_and_end_with_the_usage(http: httpx.AsyncClient) -> None:
    body = {"messages": ASKED, "n": 2, "stream": True, "stream_options": {"include_usage": True}}
    chunks = chunks_of((await http.post(PATH, json=body)).text)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    for index in (0, 1):
        mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(c["delta"].get("content", "") for c in mine) == "one two three"
        assert [c["finish_reason"] for c in mine] == [None] * (len(mine) - 1) + ["stop"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == {"prompt_tokens": 2, "completion_tokens": 6, "total_tokens": 8}
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs_tell_the_bytes_of_every_token(http: httpx.AsyncClient, stream: bool) -> None:
    body = {"messages": ASKED, "logprobs": True, "top_logprobs": 1, "stream": stream}
    response = await http.post(PATH, json=body)
    if stream:
        pieces = [choice for chunk in chunks_of(response.text) for choice in chunk["choices"]]
        content = [token for piece in pieces if piece["logprobs"] for token in piece["logprobs"]["content"]]
    else:
        content = response.json()["choices"][0]["logprobs"]["content"]
    assert [token["token"] for token in content] == ["+", ",", "-"]
    assert [token["bytes"] for token in content] == [[43], [44], [45]]
    assert all(token["logprob"] == -0.5 for token in content)
    assert content[0]["top_logprobs"][0]["logprob"] == -9999.0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_tokens": 3}, {"max_tokens": 3}),
        ({"max_completion_tokens": 3}, {"max_tokens": 3}),
        ({"max_completion_tokens": 3, "max_tokens": 3}, {"max_tokens": 3}),
        ({"logprobs": True}, {"logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 4}, {"logprobs": 4}),
        ({"logprobs": False, "temperature": None}, {"logprobs": None, "temperature": 1.0}),
        (
            {"min_p": 0.1, "stop": "x", "seed": 3, "logit_bias": {"5": 1}},
            {"min_p": 0.1, "stop": ("x",), "seed": 3, "logit_bias": {5: 1}},
        ),
        ({"user": "me", "metadata": {"a": "b"}, "tools": [], "response_format": {"type": "text"}}, {}),
    ],
)
async def test_options_reach_the_engine(
    http: httpx.AsyncClient, service: FakeService, options: dict, expected: dict
) -> None:
    response = await http.post(PATH, json={"messages": ASKED, **options})
    assert response.status_code == 200, response.text
    [request] = service.requests
    assert {name: getattr(request.sampling, name) for name in expected} == expected


async def test_parts_variables_and_an_open_end_reach_the_template(
    http: httpx.AsyncClient, service: FakeService
) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    body = {
        "messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "so"}],
        "add_generation_prompt": False,
        "continue_final_message": True,
        "chat_template_kwargs": {"mood": "dry"},
        "model": "right",
    }
    assert (await http.post(PATH, json=body)).status_code == 200
    [request] = service.requests
    assert service.text().decode(request.prompt) == "dry\nuser: one\ntwo\nassistant: so"
    assert (request.use_braiding, request.shard) == (False, "right")


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "messages", "missing"),
        ({"messages": []}, "messages", "got []"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages", "no role 'tool' here"),
        ({"messages": [{"content": "x"}]}, "messages.0.role", "missing"),
        ({"top_logprobs": 2}, "top_logprobs", "without logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "logprobs", "got 21"),
        ({"max_tokens": 2, "max_completion_tokens": 3}, "max_completion_tokens", "got 3 beside"),
        ({"max_tokens": 0}, "max_tokens", "got 0"),
        ({"chat_template": "x"}, "chat_template", "got 'x'"),
        ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs", "got 'tools'"),
        ({"tools": [{"type": "function"}]}, "tools", "function"),
        ({"response_format": {"type": "json_object"}}, "response_format.type", "json_object"),
        ({"continue_final_message": True}, "continue_final_message", "add_generation_prompt false"),
        ({"stream_options": {}}, "stream_options", "without stream"),
        ({"n": 65}, "n", "got 65"),
    ],
)
async def test_bad_requests_are_told_which_field_got_what(
    http: httpx.AsyncClient, service: FakeService, body: dict, param: str, words: str
) -> None:
    response = await http.post(PATH, json=({"messages": ASKED} | body) if body else body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param), error
    assert words in error["message"]
    assert service.requests == []


async def test_an_image_is_refused(http: httpx.AsyncClient) -> None:
    part = {"type": "image_url", "image_url": {"url": "data:"}}
    response = await http.post(PATH, json={"messages": [{"role": "user", "content": [part]}]})
    assert response.status_code == 400
    assert "got 'image_url', expected 'text'" in response.json()["error"]["message"]


async def test_a_model_without_a_template_says_so(http: httpx.AsyncClient, service: FakeService) -> None:
    service.chat_template = ""
    error = (await http.post(PATH, json={"messages": ASKED})).json()["error"]
    assert (error["code"], error["param"]) == (400, "messages")
    assert "shard 'left' has no chat template" in error["message"]
    assert "/v1/completions" in error["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_full_queue_says_when_to_come_back(
    http: httpx.AsyncClient, service: FakeService, stream: bool
) -> None:
    service.error = QueueFullError("queue: full", retry_after_s=1.2)
    response = await http.post(PATH, json={"messages": ASKED, "stream": stream})
    assert (response.status_code, response.headers["retry-after"]) == (429, "2")


async def test_a_failure_within_a_stream_is_told_before_it_ends(
    http: httpx.AsyncClient, service: FakeService
) -> None:
    service.error_after_first = UnavailableError("shard 'right': gone")
    chunks = chunks_of((await http.post(PATH, json={"messages": ASKED, "stream": True})).text)
    assert chunks[-1]["error"]["type"] == "UnavailableError"

from __future__ import annotations

import json

import httpx
import pytest

from braid_rpc.errors import ContextLengthError, UnavailableError

from ..fake_service import FakeService


def chunks_of(text: str) -> list[dict]:
    lines = [line.removeprefix("data: ") for line in text.strip().split("\n\n")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


async def test_an_answer_has_the_shape_that_clients_expect(http: httpx.AsyncClient) -> None:
    answer = (await http.post("/v1/completions", json={"model": "pair", "prompt": "x"})).json()
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert answer["model"] == "pair"
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    [choice] = answer["choices"]
    assert (choice["index"], choice["text"], choice["finish_reason"]) == (0, "one two three", "stop")
    assert choice["logprobs"] is None


async def test_streamed_chunks_make_up_the_same_text(http: httpx.AsyncClient) -> None:
    body = {"prompt": "x", "stream": True, "stream_options": {"include_usage": True}}
    chunks = chunks_of((await http.post("/v1/completions", json=body)).text)
    texts = [chunk["choices"][0]["text"] for chunk in chunks[:-1]]
    assert "".join(texts) == "one two three"
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == 5
    assert len({chunk["id"] for chunk in chunks}) == 1


async def test_no_usage_is_streamed_unless_asked_for(http: httpx.AsyncClient) -> None:
    chunks = chunks_of((await http.post("/v1/completions", json={"prompt": "x", "stream": True})).text)
    assert all(chunk["usage"] is None for chunk in chunks)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("x", ["x"]), (["x", "y"], ["x", "y"]), ([1, 2], [(1, 2)]), ([[1, 2], [3]], [(1, 2), (3,)])],
)
async def test_prompts_come_as_text_lists_or_token_ids(
    http: httpx.AsyncClient, service: FakeService, prompt: object, expected: list
) -> None:
    answer = (await http.post("/v1/completions", json={"prompt": prompt, "n": 2})).json()
    assert [request.prompt for request in service.requests] == expected
    assert [choice["index"] for choice in answer["choices"]] == list(range(2 * len(expected)))
    assert answer["usage"]["completion_tokens"] == 2 * 3 * len(expected)


async def test_logprobs_are_parallel_lists_over_the_text(http: httpx.AsyncClient) -> None:
    answer = (await http.post("/v1/completions", json={"prompt": "x", "logprobs": 1})).json()
    logprobs = answer["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["one", " two", ""]
    assert logprobs["token_logprobs"] == [-0.5] * 3
    # The chosen token is among them, by its own text: ids 10, 11 and 12 of the tokenizer.
    assert logprobs["top_logprobs"] == [{"other": -9999.0, char: -0.5} for char in "+,-"]
    assert logprobs["text_offset"] == [0, 3, 7]


async def test_echo_puts_the_prompt_before_the_completion(http: httpx.AsyncClient) -> None:
    body = {"prompt": "abc", "echo": True, "logprobs": 0}
    [choice] = (await http.post("/v1/completions", json=body)).json()["choices"]
    assert choice["text"] == "abcone two three"
    assert choice["logprobs"]["tokens"][:4] == ["a", "b", "c", "one"]
    assert choice["logprobs"]["token_logprobs"][:4] == [None, -1.0, -2.0, -0.5]
    assert choice["logprobs"]["text_offset"][:4] == [0, 1, 2, 3]
    assert choice["logprobs"]["top_logprobs"][:4] == [None] * 4


async def test_the_prompts_tokens_have_their_alternatives(http: httpx.AsyncClient) -> None:
    body = {"prompt": [64, 65, 66], "echo": True, "logprobs": 2, "max_tokens": 0}
    [choice] = (await http.post("/v1/completions", json=body)).json()["choices"]
    assert choice["text"] == "abc"
    # The likeliest of several tokens of one text counts, and the prompt's own is always there.
    assert choice["logprobs"]["top_logprobs"] == [None, {"x": -0.5, "b": -1.0}, {"x": -0.5, "c": -2.0}]
    assert choice["logprobs"]["text_offset"] == [0, 1, 2]


async def test_offsets_count_characters_not_tokens(http: httpx.AsyncClient) -> None:
    ids = (await http.post("/tokenize", json={"prompt": "é!b"})).json()["tokens"]
    assert len(ids) == 4
    for prompt in ("é!b", ids):
        body = {"prompt": prompt, "echo": True, "max_tokens": 0}
        [choice] = (await http.post("/v1/completions", json=body)).json()["choices"]
        assert (choice["text"], choice["logprobs"]) == ("é!b", None)


async def test_an_echo_without_logprobs_runs_no_model(http: httpx.AsyncClient, service: FakeService) -> None:
    body = {"prompt": "abc", "echo": True, "max_tokens": 0}
    answer = (await http.post("/v1/completions", json=body)).json()
    assert answer["usage"]["prompt_tokens"] == 3
    assert service.scored == service.requests == []


async def test_echo_of_nothing_more_scores_the_prompt(http: httpx.AsyncClient, service: FakeService) -> None:
    body = {"prompt": "abc", "echo": True, "logprobs": 0, "max_tokens": 0}
    answer = (await http.post("/v1/completions", json=body)).json()
    assert service.requests == []
    assert answer["choices"][0]["text"] == "abc"
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 0, "total_tokens": 3}


async def test_null_is_the_default(http: httpx.AsyncClient, service: FakeService) -> None:
    body = {"prompt": "x", "max_tokens": None, "temperature": None, "n": None, "stop": None, "stream": None}
    assert (await http.post("/v1/completions", json=body)).status_code == 200
    assert service.requests[0].sampling.max_tokens == 16
    assert service.requests[0].sampling.temperature == 1.0


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"prompt": []}, 400, "0 prompts"),
        ({"prompt": ["x"] * 65}, 400, "65 prompts"),
        ({"prompt": ["x", ""]}, 400, "empty prompt"),
        ({"prompt": "x", "best_of": 3}, 400, "best_of: got 3"),
        ({"prompt": "x", "suffix": "y"}, 400, "suffix: got 'y'"),
        ({"prompt": "x", "tempreature": 1}, 400, "tempreature: unknown field"),
        ({"prompt": "x", "max_tokens": 0}, 400, "max_tokens: got 0"),
        ({"prompt": "x", "model": "gpt-4"}, 404, "'gpt-4'"),
        ({"prompt": "x", "stream_options": {"include_usage": True}}, 400, "stream_options: got"),
        ({"prompt": "x", "min_tokens": 9, "max_tokens": 3}, 400, "min_tokens: got 9"),
    ],
)
async def test_bad_requests_are_refused(http: httpx.AsyncClient, body: dict, status: int, words: str) -> None:
    response = await http.post("/v1/completions", json=body)
    assert response.status_code == status
    assert words in response.json()["error"]["message"]


async def test_a_prompt_that_is_too_long_is_refused_before_the_stream(
    http: httpx.AsyncClient, service: FakeService
) -> None:
    service.error = ContextLengthError(
        "prompt: got 99 tokens, expected fewer than 64: shard 'left' holds 64 tokens"
    )
    response = await http.post("/v1/completions", json={"prompt": "x", "stream": True})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "prompt"


async def test_a_failure_within_a_stream_is_told_before_it_ends(
    http: httpx.AsyncClient, service: FakeService
) -> None:
    service.error_after_first = UnavailableError("shard 'right': gone")
    chunks = chunks_of((await http.post("/v1/completions", json={"prompt": "x", "stream": True})).text)
    assert chunks[-1]["error"]["type"] == "UnavailableError"


async def test_one_failing_prompt_ends_the_others(http: httpx.AsyncClient, service: FakeService) -> None:
    service.error_after_first = UnavailableError("shard 'right': gone")
    response = await http.post("/v1/completions", json={"prompt": ["x", "y", "z"]})
    assert response.status_code == 503
    assert service.closed == len(service.requests)


async def test_tokens_are_named_by_whoever_was_decided_on(
    http: httpx.AsyncClient, service: FakeService
) -> None:
    service.decider = lambda text: "right" if text == "x" else True
    body = {"prompt": ["x", "y"], "logprobs": 1, "use_braiding": "auto", "echo": True}
    answer = (await http.post("/v1/completions", json=body)).json()
    assert answer["answered_by"] == ["right", "pair"]
    assert [(request.prompt, request.shard) for request in service.requests] == [("x", "right"), ("y", None)]
    assert [(request.prompt, request.shard) for request in service.scored] == [("x", "right"), ("y", None)]
    assert service.texts_asked.count("right") == service.texts_asked.count(None) - 2 == 2

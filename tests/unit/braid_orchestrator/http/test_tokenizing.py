from __future__ import annotations

import httpx
import pytest

from ..fake_service import CHAT_TEMPLATE, FakeService


async def test_there_and_back(http: httpx.AsyncClient) -> None:
    answer = (await http.post("/tokenize", json={"prompt": "the é", "return_token_strs": True})).json()
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
    assert answer["max_model_len"] == 64
    assert answer["token_strs"][0] == "the"
    back = (await http.post("/detokenize", json={"tokens": answer["tokens"]})).json()
    assert back == {"prompt": "the é"}


async def test_special_tokens_are_shown(http: httpx.AsyncClient) -> None:
    tokens = (await http.post("/tokenize", json={"prompt": "a<eos>"})).json()["tokens"]
    assert tokens[-1] == 261
    assert (await http.post("/detokenize", json={"tokens": tokens})).json()["prompt"] == "a<eos>"


async def test_a_conversation_is_tokenized_as_it_would_be_asked(
    http: httpx.AsyncClient, service: FakeService
) -> None:
    messages = [{"role": "user", "content": "the"}]
    tokens = (await http.post("/tokenize", json={"messages": messages, "model": "right"})).json()["tokens"]
    await http.post("/v1/chat/completions", json={"messages": messages})
    assert tuple(tokens) == service.requests[0].prompt


async def test_what_other_programs_need_to_know(http: httpx.AsyncClient) -> None:
    answer = (await http.get("/tokenizer_info", params={"model": "pair"})).json()
    assert answer["eos_token"] == "<eos>"
    assert answer["bos_token"] is None
    assert answer["chat_template"] == CHAT_TEMPLATE
    assert answer["vocab_size"] == 262


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/tokenize", {}, 400, "neither prompt nor messages"),
        (
            "/tokenize",
            {"prompt": "x", "messages": [{"role": "user", "content": "x"}]},
            400,
            "prompt and messages",
        ),
        ("/tokenize", {"prompt": "x" * 5000}, 400, "got 5000 characters"),
        ("/tokenize", {"prompt": "x", "model": "middle"}, 404, "got 'middle'"),
        ("/detokenize", {"tokens": [1, 262]}, 400, "tokens: got token id 262, expected between 0 and 261"),
        ("/detokenize", {"tokens": "x"}, 400, "tokens: got 'x'"),
    ],
)
async def test_bad_requests_are_refused(
    http: httpx.AsyncClient, path: str, body: dict, status: int, words: str
) -> None:
    response = await http.post(path, json=body)
    assert response.status_code == status
    assert words in response.json()["error"]["message"]

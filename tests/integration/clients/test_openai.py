"""OpenAI's own client, unmodified, against a braid."""

from __future__ import annotations

import itertools
import math
from collections.abc import AsyncIterator, Iterator

import pytest
from served import Served

openai = pytest.importorskip("openai", reason="needs the openai client: pip install '.[clients]'")

PROMPT = "the inner thread"
GREEDY = {"max_tokens": 8, "temperature": 0.0, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def client(braid: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=braid.openai_url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(braid: Served) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=braid.openai_url, api_key="none", max_retries=0) as client:
        yield client


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "left", "right"]
    assert client.models.retrieve("right").id == "right"
    with pytest.raises(openai.NotFoundError, match="'middle'"):
        client.models.retrieve("middle")


def test_a_completion_and_its_stream_agree(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="tiny", prompt=PROMPT, **GREEDY)
    assert whole.usage.completion_tokens == 8
    assert whole.choices[0].finish_reason == "length"
    chunks = [
        *client.completions.create(
            model="tiny", prompt=PROMPT, stream=True, stream_options={"include_usage": True}, **GREEDY
        )
    ]
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert chunks[-1].usage == whole.usage


def test_batches_choices_and_token_ids(client: openai.OpenAI, braid: Served) -> None:
    ids = list(braid.service.text().encode(PROMPT).token_ids)
    one = client.completions.create(model="tiny", prompt=PROMPT, **GREEDY).choices[0].text
    many = client.completions.create(model="tiny", prompt=[ids, ids], n=2, **GREEDY)
    assert [choice.text for choice in many.choices] == [one] * 4
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3]
    sampled = client.completions.create(model="tiny", prompt=PROMPT, n=3, seed=5, max_tokens=8)
    assert len({choice.text for choice in sampled.choices}) == 3


def test_logprobs_of_prompt_and_completion(client: openai.OpenAI, braid: Served) -> None:
    answer = client.completions.create(model="tiny", prompt=PROMPT, echo=True, logprobs=3, **GREEDY)
    choice, logprobs = answer.choices[0], answer.choices[0].logprobs
    assert choice.text.startswith(PROMPT)
    num = answer.usage.total_tokens
    assert {len(logprobs.tokens), len(logprobs.token_logprobs), len(logprobs.top_logprobs)} == {num}
    assert logprobs.token_logprobs[0] is logprobs.top_logprobs[0] is None
    for place in range(1, num):
        top = logprobs.top_logprobs[place]
        assert 1 <= len(top) <= 4 and logprobs.token_logprobs[place] <= max(top.values())
    for place in range(answer.usage.prompt_tokens, num):
        assert logprobs.token_logprobs[place] == max(logprobs.top_logprobs[place].values())
    prompt_part = logprobs.text_offset[: answer.usage.prompt_tokens]
    cuts = [*prompt_part, len(PROMPT)]
    assert [PROMPT[a:b] for a, b in itertools.pairwise(cuts)] == logprobs.tokens[: len(prompt_part)]


def test_a_stop_string_across_tokens_ends_the_text(client: openai.OpenAI) -> None:
    options = GREEDY | {"max_tokens": 24, "seed": 3, "temperature": 1.0}
    whole = client.completions.create(model="tiny", prompt=PROMPT, **options).choices[0].text
    stop = whole[5:10]
    assert len(stop) == 5
    expected = whole[: whole.index(stop)]
    cut = client.completions.create(model="tiny", prompt=PROMPT, stop=[stop], **options).choices[0]
    assert (cut.text, cut.finish_reason) == (expected, "stop")
    chunks = client.completions.create(model="tiny", prompt=PROMPT, stop=stop, stream=True, **options)
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected


def test_a_chat_and_its_stream_agree(client: openai.OpenAI, braid: Served) -> None:
    messages = [{"role": "system", "content": "in"}, {"role": "user", "content": "there"}]
    whole = client.chat.completions.create(model="tiny", messages=messages, n=2, **GREEDY)
    assert whole.usage.prompt_tokens == len(braid.service.text().encode("s:in\nu:there\na:").token_ids)
    assert whole.choices[0].message.role == "assistant"
    by_hand = client.completions.create(model="tiny", prompt="s:in\nu:there\na:", **GREEDY)
    assert whole.choices[0].message.content == by_hand.choices[0].text
    chunks = [
        *client.chat.completions.create(
            model="tiny",
            messages=messages,
            n=2,
            stream=True,
            stream_options={"include_usage": True},
            **GREEDY,
        )
    ]
    assert chunks[0].choices[0].delta.role == "assistant"
    for index, choice in enumerate(whole.choices):
        pieces = [c for chunk in chunks for c in chunk.choices if c.index == index]
        assert "".join(piece.delta.content or "" for piece in pieces) == choice.message.content
        assert pieces[-1].finish_reason == choice.finish_reason
    assert chunks[-1].usage == whole.usage


def test_chat_logprobs_spell_the_answer_in_bytes(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "the"}],
        logprobs=True,
        top_logprobs=2,
        seed=2,
        max_tokens=30,
    )
    choice = answer.choices[0]
    spelled = b"".join(bytes(token.bytes) for token in choice.logprobs.content if token.token != "<eos>")
    assert spelled.decode(errors="replace") == choice.message.content
    for token in choice.logprobs.content:
        assert len(token.top_logprobs) == 2
        assert token.logprob <= token.top_logprobs[0].logprob
        assert sum(math.exp(top.logprob) for top in token.top_logprobs) <= 1.0 + 1e-6


@pytest.mark.parametrize(
    ("error", "words", "options"),
    [
        (openai.BadRequestError, "temperature: got", {"temperature": -1.0}),
        (openai.BadRequestError, "max_tokens: got 5000", {"max_tokens": 5000}),
        (openai.BadRequestError, "logit_bias: got token id 4000", {"logit_bias": {"4000": 1}}),
        (openai.NotFoundError, "model: got 'gpt-4'", {"model": "gpt-4"}),
        (openai.BadRequestError, "suffix: got", {"suffix": "x"}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_become_the_clients_exceptions(
    client: openai.OpenAI, error: type[Exception], words: str, options: dict, stream: bool
) -> None:
    with pytest.raises(error, match=words) as raised:
        client.completions.create(**{"model": "tiny", "prompt": PROMPT, "stream": stream} | options)
    assert raised.value.body["message"].startswith(words)


def test_a_full_queue_is_a_rate_limit(client: openai.OpenAI) -> None:
    with pytest.raises(openai.RateLimitError) as raised:
        client.completions.create(model="tiny", prompt=[PROMPT] * 64, n=2, max_tokens=200)
    assert int(raised.value.response.headers["retry-after"]) >= 1


def test_a_shard_without_a_template_is_a_bad_request(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="shard 'right' has no chat template"):
        client.chat.completions.create(model="right", messages=[{"role": "user", "content": "x"}])
    with pytest.raises(openai.BadRequestError, match="expected a system, user or assistant role, got tool"):
        client.chat.completions.create(
            model="tiny", messages=[{"role": "tool", "content": "x", "tool_call_id": "1"}]
        )


async def test_the_asynchronous_client_streams_too(async_client: openai.AsyncOpenAI) -> None:
    messages = [{"role": "user", "content": "the"}]
    whole = await async_client.chat.completions.create(model="left", messages=messages, **GREEDY)
    stream = await async_client.chat.completions.create(
        model="left", messages=messages, stream=True, **GREEDY
    )
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == whole.choices[0].message.content


async def test_leaving_a_stream_cancels_it(async_client: openai.AsyncOpenAI, braid: Served) -> None:
    stream = await async_client.completions.create(
        model="tiny", prompt=PROMPT, stream=True, max_tokens=200, extra_body={"ignore_eos": True}
    )
    await anext(aiter(stream))
    await stream.close()
    braid.wait_until_idle()
    assert braid.service.stats().completion_tokens < 10_000

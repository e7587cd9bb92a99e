"""LangChain's client for OpenAI-style services, unmodified, against a braid."""

from __future__ import annotations

import pytest
from served import Served

langchain = pytest.importorskip("langchain_openai", reason="needs langchain-openai: pip install '.[clients]'")


def test_a_chat_and_its_stream_agree(braid: Served) -> None:
    chat = langchain.ChatOpenAI(
        model="tiny", base_url=braid.openai_url, api_key="none", temperature=0, max_tokens=8, max_retries=0
    )
    messages = [("system", "in"), ("human", "there")]
    answer = chat.invoke(messages)
    assert answer.usage_metadata["output_tokens"] == 8
    assert answer.response_metadata["finish_reason"] == "length"
    assert "".join(chunk.content for chunk in chat.stream(messages)) == answer.content


def test_a_completion_of_one_shard(braid: Served) -> None:
    model = langchain.OpenAI(
        model="left", base_url=braid.openai_url, api_key="none", temperature=0, max_tokens=8, max_retries=0
    )
    answer = model.invoke("the inner thread")
    with braid.http() as http:
        body = {"model": "left", "prompt": "the inner thread", "temperature": 0, "max_tokens": 8}
        assert answer == http.post("/v1/completions", json=body).json()["choices"][0]["text"]

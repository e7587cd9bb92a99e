from __future__ import annotations

import pytest
from models import byte_tokenizer

from braid_orchestrator.engine.text import TextCodec
from braid_orchestrator.serving.shard_text import ShardText
from braid_rpc.cards import ChatFormat
from braid_rpc.errors import ContextLengthError, InvalidRequestError
from braid_services.shard.loading import chat_format

from ..fake_service import CHAT_TEMPLATE, shard_card

CONVERSATION = [
    {"role": "system", "content": "short answers"},
    {"role": "user", "content": "the <b>thing</b> & “it”?"},
    {"role": "assistant", "content": "  there "},
    {"role": "user", "content": "where"},
]


def text_of(template: str) -> ShardText:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    codec = TextCodec(tokenizer.backend_tokenizer.to_str())
    return ShardText(shard_card("left"), codec, chat_format(tokenizer))


@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_a_conversation_is_rendered_as_transformers_does(add_generation_prompt: bool) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    expected = tokenizer.apply_chat_template(
        CONVERSATION, tokenize=False, add_generation_prompt=add_generation_prompt, mood="dry"
    )
    got = text_of(CHAT_TEMPLATE).render(
        CONVERSATION, add_generation_prompt=add_generation_prompt, variables={"mood": "dry"}
    )
    assert got == expected
    assert "<eos>" in got and "dry" in got and "<b>" in got


def test_the_last_message_may_be_gone_on_with() -> None:
    rendered = text_of(CHAT_TEMPLATE).render(
        CONVERSATION[:3], add_generation_prompt=False, continue_final_message=True
    )
    assert rendered.endswith("assistant:   there ")


@pytest.mark.parametrize(
    ("template", "messages", "variables", "words"),
    [
        ("", CONVERSATION, {}, "shard 'left' has no chat template"),
        (CHAT_TEMPLATE, [{"role": "tool", "content": "x"}], {}, "no role 'tool'"),
        ("{{ messages[3].content }}", CONVERSATION[:1], {}, "refused by the chat template of shard 'left'"),
        ("{{ messages.__class__.__mro__ }}", CONVERSATION, {}, "refused by the chat template"),
        (CHAT_TEMPLATE, CONVERSATION, {"chat_template": "x"}, "chat_template_kwargs: got 'chat_template'"),
        (CHAT_TEMPLATE, CONVERSATION, {"messages": []}, "chat_template_kwargs: got 'messages'"),
    ],
)
def test_what_a_template_cannot_take_is_refused(
    template: str, messages: list[dict], variables: dict, words: str
) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        text_of(template).render(messages, variables=variables)


def test_the_default_of_several_templates_is_taken() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"default": "one", "tool_use": "two"}
    assert chat_format(tokenizer).template == "one"
    assert chat_format(byte_tokenizer()) == ChatFormat("", {"eos_token": "<eos>"})
    assert chat_format(None) == ChatFormat()


def test_pieces_make_up_the_text_and_lose_no_character() -> None:
    text = text_of("")
    encoded = text.encode("in thé 🧶!")
    pieces = text.pieces(encoded.token_ids)
    assert len(pieces) == len(encoded.token_ids)
    assert "".join(pieces) == text.decode(encoded.token_ids) == "in thé 🧶!"
    assert "\ufffd" not in "".join(pieces)
    assert text.pieces(encoded.token_ids[:-2])[-1] == "\ufffd"


def test_a_text_far_beyond_the_context_is_never_tokenized() -> None:
    with pytest.raises(ContextLengthError, match=r"got 4194304 characters, expected at most \d+: 64 tokens"):
        text_of("").encode("x" * 2**22)


def test_ids_out_of_range_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="tokens: got token id 262, expected between 0 and 261"):
        text_of("").decode([1, 262])

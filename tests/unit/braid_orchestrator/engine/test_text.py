"""Streaming text equals text at once, and never shows half a character."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from braid_orchestrator.engine.text import IncrementalDecoder, StopScanner, TextCodec
from braid_rpc.errors import ConfigError, InvalidRequestError


def byte_codec() -> TextCodec:
    """Every byte is a token: the hardest case for characters of several bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: index for index, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return TextCodec(tokenizer.to_str())


CODEC = byte_codec()


@given(st.text(max_size=40), st.text(max_size=40))
def test_pieces_add_up_to_the_text_and_are_whole_characters(prompt: str, text: str) -> None:
    prompt_ids = CODEC.encode(prompt).token_ids
    decoder = IncrementalDecoder(CODEC, prompt_ids)
    pieces = [decoder.push(token_id) for token_id in CODEC.encode(text).token_ids]
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert "".join(pieces) + decoder.flush() == text


@given(st.lists(st.integers(0, 255), max_size=40))
def test_any_bytes_come_out_once(token_ids: list[int]) -> None:
    decoder = IncrementalDecoder(CODEC, ())
    streamed = "".join(decoder.push(token_id) for token_id in token_ids) + decoder.flush()
    assert streamed.replace("\N{REPLACEMENT CHARACTER}", "") == CODEC.decode(token_ids).replace(
        "\N{REPLACEMENT CHARACTER}", ""
    )


def test_a_character_of_four_bytes_comes_with_its_last_token() -> None:
    decoder = IncrementalDecoder(CODEC, CODEC.encode("a").token_ids)
    assert [decoder.push(t) for t in CODEC.encode("🧶").token_ids] == ["", "", "", "🧶"]


def test_leading_space_conventions_hold_in_streams(shared_dir) -> None:
    codec = TextCodec((shared_dir / "models/stories260K/tokenizer.json").read_text())
    prompt, text = "Once upon a time", ", there was a little girl named Lily — “é”."
    ids = codec.encode(prompt + text).token_ids
    prompt_ids = codec.encode(prompt).token_ids
    assert ids[: len(prompt_ids)] == prompt_ids
    decoder = IncrementalDecoder(codec, prompt_ids)
    assert "".join(decoder.push(t) for t in ids[len(prompt_ids) :]) + decoder.flush() == text


@given(
    st.text(alphabet="abc", max_size=30),
    st.lists(st.text(alphabet="abc", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.integers(1, 4), max_size=30),
)
def test_a_stop_string_is_found_wherever_the_text_is_cut(
    text: str, stop: list[str], sizes: list[int]
) -> None:
    hits = [(text.find(s) + len(s), text.find(s), s) for s in stop if s in text]
    _, end, expected_stop = min(hits) if hits else (0, len(text), None)
    scanner, out, rest, met = StopScanner(stop), "", text, None
    for size in [*sizes, len(text) or 1]:
        piece, rest = rest[:size], rest[size:]
        given_out, met = scanner.push(piece)
        out += given_out
        if met:
            break
        assert text[:end].startswith(out), "gave out text that belongs to a stop string"
    assert met == expected_stop
    assert out + ("" if met else scanner.flush()) == text[:end]


def test_text_that_cannot_be_encoded_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="lone surrogate at character 1"):
        CODEC.encode("a\ud800")
    with pytest.raises(ConfigError, match="tokenizer"):
        TextCodec("{}")

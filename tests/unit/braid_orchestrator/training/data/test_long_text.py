"""A text tokenized in parts has the tokens of the text tokenized at once."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizations import KINDS, TEXT, tokenizer_json

from braid_orchestrator.engine.text import Encoded, TextCodec
from braid_orchestrator.training.data.long_text import encode_in_parts

CODECS = {kind: TextCodec(tokenizer_json(kind)) for kind in KINDS}
WORDS = sorted({*TEXT.split(" "), " ", "\n\n\n", "1234567890", "\u0301", "🙂👍🏽", "  \n \t", "return None"})


class Counting:
    """A tokenizer that knows the longest text that it was given."""

    def __init__(self, kind: str) -> None:
        self.longest = 0
        self._codec = CODECS[kind]

    def __call__(self, text: str) -> Encoded:
        self.longest = max(self.longest, len(text))
        return self._codec.encode(text, add_special_tokens=False)


def check(kind: str, text: str, part_chars: int, overlap_chars: int) -> int:
    """Returns the longest text that was tokenized at once."""
    encode = Counting(kind)
    parts = list(encode_in_parts(encode, text, part_chars=part_chars, overlap_chars=overlap_chars))
    whole = CODECS[kind].encode(text, add_special_tokens=False).token_ids
    assert [token_id for ids, _ in parts for token_id in ids] == list(whole)
    reached = [0, *(chars for _, chars in parts)]
    assert reached[-1] == len(text) and all(before <= after for before, after in pairwise(reached))
    return encode.longest


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30)
@given(words=st.lists(st.sampled_from(WORDS), max_size=150))
def test_parts_give_the_tokens_of_the_whole(kind: str, words: list[str]) -> None:
    check(kind, " ".join(words), part_chars=200, overlap_chars=100)


@pytest.mark.parametrize("kind", KINDS)
def test_no_more_than_a_part_is_tokenized_at_once(kind: str) -> None:
    assert check(kind, TEXT * 20, part_chars=400, overlap_chars=100) == 400


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["a" * 3000, "1" * 3001, " " * 2999, "ab " * 1000, "é\u0301" * 1000, ""])
def test_texts_without_a_place_to_part_are_tokenized_right_too(kind: str, text: str) -> None:
    check(kind, text, part_chars=400, overlap_chars=100)


def test_parts_that_read_a_place_differently_are_not_joined_there() -> None:
    """Tokens of two letters each, counted from wherever a part begins: odd places are read differently."""

    def pairs(text: str) -> Encoded:
        starts = range(0, len(text), 2)
        return Encoded(tuple(0 for _ in starts), tuple((start, start + 2) for start in starts))

    text = "a" * 1000
    parts = list(encode_in_parts(pairs, text, part_chars=100, overlap_chars=31))
    assert sum(len(ids) for ids, _ in parts) == 500

"""Which row sees which, against a definition that looks only at prefixes of the text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizations import tokenizer_json

from braid_fusion.alignment import SettlingTokenizer, Weave
from braid_fusion.alignment.weave import align
from braid_orchestrator.engine.text import IncrementalDecoder, TextCodec

READERS = ("byte bpe, cl100k", "llama", "words")
TEXTS = st.lists(
    st.sampled_from(
        ["Once upon", " a time", ", there", " is", "n't", " 1234", "é", "🙂", " ", "\n\n", "<eos>", "x" * 40]
    ),
    min_size=1,
    max_size=8,
).map("".join)
ANCHORS = ("byte bpe", "bytes", "llama")


def woven(anchor: str, ids: list[int], readers: tuple[str, ...] = READERS) -> Weave:
    decoder = IncrementalDecoder(TextCodec(tokenizer_json(anchor)), ())
    weave = Weave([SettlingTokenizer(tokenizer_json(kind)) for kind in readers])
    for token_id in ids:
        text = decoder.push(token_id)
        weave.push(text, within_character=decoder.is_within_character)
    return weave


def encode(anchor: str, text: str) -> list[int]:
    return list(TextCodec(tokenizer_json(anchor)).encode(text).token_ids)


@pytest.mark.parametrize("anchor", ANCHORS)
@settings(max_examples=25)
@given(text=TEXTS, other=TEXTS)
def test_settled_tokens_never_change_and_no_later_text_shows(anchor: str, text: str, other: str) -> None:
    ids, others = encode(anchor, text), encode(anchor, other)
    whole = woven(anchor, ids + others)
    for count in range(1, len(ids) + 1):
        before = woven(anchor, ids[:count])
        for early, late in zip(before.lanes, whole.lanes, strict=True):
            settled = late.count(count)
            assert early.token_ids == late.token_ids[:settled]
            assert early.level_with == late.level_with[:settled]
            assert early.pending[-1] == late.pending[count - 1]
        for lane in range(1 + len(READERS)):
            assert before.seen(lane, 0, count) == [
                positions[: before.rows(lane, 0, count)[1]]
                for positions in whole.seen(lane, 0, len(ids) + len(others))
            ]


@pytest.mark.parametrize("anchor", ANCHORS)
@settings(max_examples=25)
@given(text=TEXTS)
def test_a_row_sees_only_what_ended_by_then_and_sees_the_last_of_it(anchor: str, text: str) -> None:
    ids = encode(anchor, text)
    codec = TextCodec(tokenizer_json(anchor))
    weave = woven(anchor, ids)
    read = "".join(
        piece for decoder in [IncrementalDecoder(codec, ())] for piece in [decoder.push(i) for i in ids]
    )
    # Where each of the anchor's tokens ends, told by what follows: a part of a character ends with it.
    ends = [len(codec.decode(ids[: at + 1]).rstrip("\ufffd")) for at in range(len(ids))]
    for index, kind in enumerate(READERS):
        lane = weave.lanes[index]
        reader = SettlingTokenizer(tokenizer_json(kind)).begin()
        tokens = [token for char in read for token in reader.push(char)]
        leading = SettlingTokenizer(tokenizer_json(kind)).leading_ids
        given_out = [*leading, *(token.token_id for token in tokens)][: len(lane.token_ids)]
        assert lane.token_ids == given_out
        token_ends = [0] * len(leading) + [token.end for token in tokens]
        for at, level in enumerate(lane.level_with):
            if level >= 0:
                assert ends[level] <= token_ends[at] or anchor == "llama"
        for row, seen in enumerate(weave.seen(0, 0, len(ids))[index + 1]):
            assert seen == lane.counts[row] - 1
            assert all(end <= ends[row] or anchor == "llama" for end in token_ends[: seen + 1])


def test_rows_within_a_character_are_not_seen_before_it_is_whole() -> None:
    ids = encode("bytes", "é ok fine")
    weave = woven("bytes", ids, ("words",))
    assert weave.lanes[0].pending[0] is None
    assert weave.lanes[0].level_with[0] == 1  # é ends with the second of its bytes


@settings(max_examples=50)
@given(text=TEXTS, max_rows=st.integers(1, 30), begin=st.integers(0, 5))
def test_rows_of_a_step_are_bounded_in_every_lane(text: str, max_rows: int, begin: int) -> None:
    ids = encode("byte bpe", text)
    weave = woven("byte bpe", ids, (*READERS, "bytes"))
    begin = min(begin, len(ids) - 1)
    end = weave.fitting(begin, len(ids), max_rows)
    rows = [weave.rows(lane, begin, end)[1] for lane in range(5)]
    assert begin < end <= len(ids)
    assert end == begin + 1 or max(rows) <= max_rows
    if end < len(ids):
        assert max(weave.rows(lane, begin, end + 1)[1] for lane in range(5)) > max_rows


@settings(max_examples=25)
@given(texts=st.lists(TEXTS, min_size=1, max_size=3))
def test_packed_rows_are_those_of_each_session(texts: list[str]) -> None:
    weaves = [woven("byte bpe", encode("byte bpe", text)) for text in texts]
    spans = [(len(weave) // 3, len(weave)) for weave in weaves]
    alignment = align(weaves, spans, (0, 1, 2, 3))
    for lane, rows in enumerate(alignment.lanes):
        starts = [sum(rows.row_counts[:index]) for index in range(len(weaves))]
        for weave, span, start, position, count in zip(
            weaves, spans, starts, rows.positions, rows.row_counts, strict=True
        ):
            assert (position, count) == weave.rows(lane, *span)
            assert [list(seen[start : start + count]) for seen in rows.seen] == weave.seen(lane, *span)


def test_a_copy_grows_by_itself() -> None:
    weave = woven("byte bpe", encode("byte bpe", "Once upon a"))
    twin = weave.copy()
    before = [[*lane.token_ids] for lane in weave.lanes]
    for _ in range(3):
        twin.push(" time")
    assert [lane.token_ids for lane in weave.lanes] == before
    assert len(twin) == len(weave) + 3
    assert all(len(lane.token_ids) > len(ids) for lane, ids in zip(twin.lanes, before, strict=True))

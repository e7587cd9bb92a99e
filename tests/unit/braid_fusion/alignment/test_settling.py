"""Tokens that were given out are those of the whole text, whatever comes later and however the text came."""

from __future__ import annotations

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizations import GPT2_FOLDER, KINDS, SHARED, TEXT, tokenizer_json
from tokenizers import Tokenizer, models, pre_tokenizers

from braid_fusion.alignment import SettlingTokenizer
from braid_fusion.alignment.settling import MAX_PENDING_CHARS
from braid_fusion.errors import UnreadableTokenizer

WORDS = st.sampled_from(
    [
        *[
            "She'd",
            "they're",
            "aren't",
            "I'll",
            "x",
            "'r",
            "'re",
            "'v",
            "'ll",
            "1234",
            "12",
            "3.14",
            "foo_bar",
            "FooBar",
            "<eos>",
            "return",
            "None",
            "-->",
            "--",
        ],
        *[
            "你好",
            "世界",
            "Привет",
            "שלום",
            "مرحبا",
            "🙂",
            "👍🏽",
            "👩\u200d👩\u200d👧",
            "é",
            "ạ́",
            "q̧́",
            "ﬁ",
            "İ",
            "ß",
            "ǅ",
        ],
        *["\u200d", "\ufffd", "\x00", "\u0301", "\u00a0", "\u3000"],
    ]
)
BLANKS = st.sampled_from(
    [" ", " ", " ", "  ", "\n", "\n\n\n", " \n", "\t", ", ", ". ", "! ", "(", "\r\n", ""]
)
TEXTS = st.lists(st.tuples(WORDS, BLANKS), min_size=1, max_size=12).map(
    lambda parts: "".join(word + blank for word, blank in parts)
)


def settled(tokenizer: SettlingTokenizer, pieces: list[str]) -> tuple[list[int], list[int]]:
    text = tokenizer.begin()
    tokens = [token for piece in pieces for token in text.push(piece)]
    return [token.token_id for token in tokens], [token.end for token in tokens]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(text=TEXTS, cuts=st.lists(st.integers(0, 200), max_size=8))
@example(text="I're 'll she'd ", cuts=[2, 3, 4])
@example(text="a\n  \n b  \n\n\n  c", cuts=[1, 2, 3, 5, 8])
def test_how_the_text_comes_makes_no_difference(kind: str, text: str, cuts: list[int]) -> None:
    tokenizer = SettlingTokenizer(tokenizer_json(kind))
    ends = [*sorted(cut for cut in set(cuts) if cut < len(text)), len(text)]
    pieces = [text[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
    in_pieces, piece_ends = settled(tokenizer, pieces)
    by_char, char_ends = settled(tokenizer, list(text))
    common = min(len(in_pieces), len(by_char))
    # A text without any place to cut is cut by force, and where then depends on what is there.
    assume(len(max(text.split(), key=len, default="")) < MAX_PENDING_CHARS)
    assert in_pieces[:common] == by_char[:common]
    assert piece_ends[:common] == char_ends[:common]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(text=TEXTS)
@example(text="a\u0327\u0327\u0327\u0327\u0301 bcd")
@example(text="a\n      \n b")
@example(text="x return None y return  No ")
def test_what_is_given_out_is_how_the_whole_text_begins(kind: str, text: str) -> None:
    """The tokenizer itself, over the whole text at once, is the oracle."""
    plain = Tokenizer.from_str(tokenizer_json(kind))
    plain.encode_special_tokens = True
    whole = plain.encode(text, add_special_tokens=False).ids
    by_char, _ = settled(SettlingTokenizer(tokenizer_json(kind)), list(text))
    assert by_char == whole[: len(by_char)]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(text=st.text(max_size=300))
def test_any_text_is_read_to_the_end_but_for_a_short_rest(kind: str, text: str) -> None:
    growing = SettlingTokenizer(tokenizer_json(kind)).begin()
    ends: list[int] = []
    for count, char in enumerate(text, start=1):
        ends += [token.end for token in growing.push(char)]
        assert growing.settled_chars + len(growing.pending) == count
        assert len(growing.pending) <= MAX_PENDING_CHARS
    assert ends == sorted(ends)
    assert all(0 <= end <= growing.settled_chars for end in ends)


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_given_out_as_soon_as_they_are_over(kind: str) -> None:
    growing = SettlingTokenizer(tokenizer_json(kind)).begin()
    growing.push("Once upon a time")
    assert growing.settled_chars in (11, 12, 16)
    assert growing.pending.strip() in ("time", "")


@pytest.mark.parametrize("kind", KINDS)
def test_text_without_an_end_of_a_word_neither_grows_nor_slows(kind: str) -> None:
    growing = SettlingTokenizer(tokenizer_json(kind)).begin()
    given_out = sum(len(growing.push("語x"[i % 2])) for i in range(2000))
    assert len(growing.pending) <= MAX_PENDING_CHARS
    assert given_out > 0


@pytest.mark.parametrize("kind", ["byte bpe", "byte bpe, space first", "llama", "unigram"])
def test_a_word_cut_by_force_gets_no_space_inside(kind: str) -> None:
    text = "thequickbrown" * 40
    ids, _ = settled(SettlingTokenizer(tokenizer_json(kind)), list(text))
    read = Tokenizer.from_str(tokenizer_json(kind)).decode(ids).lstrip()
    assert len(read) > 100
    assert text.startswith(read)


def test_names_of_special_tokens_in_a_text_are_text() -> None:
    tokenizer = SettlingTokenizer(tokenizer_json("byte bpe"))
    end_of_text = Tokenizer.from_str(tokenizer_json("byte bpe")).token_to_id("<eos>")
    ids, _ = settled(tokenizer, list("one <eos> two <eos> three "))
    assert end_of_text not in ids
    assert Tokenizer.from_str(tokenizer_json("byte bpe")).decode(ids).startswith("one <eos> two <eos>")


@pytest.mark.parametrize(("kind", "leading"), [("llama", ["<s>"]), ("word piece", ["[CLS]"]), ("bytes", [])])
def test_what_stands_before_every_text(kind: str, leading: list[str]) -> None:
    plain = Tokenizer.from_str(tokenizer_json(kind))
    assert [plain.id_to_token(i) for i in SettlingTokenizer(tokenizer_json(kind)).leading_ids] == leading


def test_an_unreadable_tokenizer_is_refused() -> None:
    with pytest.raises(UnreadableTokenizer, match="not readable"):
        SettlingTokenizer("{}")


@pytest.mark.parametrize("model", ["stories260K", "aidreams260K", "gpt2"])
@pytest.mark.parametrize("source", ["tinystories/sample.txt", "code/attrs.py.txt", "wikitext-2/valid.txt"])
def test_real_tokenizers_read_real_text_as_ever(model: str, source: str) -> None:
    file = SHARED / "data" / source
    folder = GPT2_FOLDER if model == "gpt2" else SHARED / "models" / model
    if not (file.exists() and folder.exists()):
        pytest.skip(f"needs {file} and {folder}")
    text = file.read_text()[:20_000]
    tokenizer_text = tokenizer_json("gpt2") if model == "gpt2" else (folder / "tokenizer.json").read_text()
    plain = Tokenizer.from_str(tokenizer_text)
    plain.encode_special_tokens = True
    whole = plain.encode(text, add_special_tokens=False).ids
    ids, _ = settled(SettlingTokenizer(tokenizer_text), list(text))
    assert len(ids) > len(whole) - 40
    assert ids == whole[: len(ids)]


def test_a_few_lines_are_read_whole() -> None:
    growing = SettlingTokenizer(tokenizer_json("byte bpe")).begin()
    growing.push(TEXT)
    assert growing.settled_chars > len(TEXT) - 10


@pytest.mark.parametrize("kind", KINDS)
def test_text_cut_by_force_is_read_once(kind: str) -> None:
    """Also where the cut would fall between the tokens of one character."""
    text = "🙂👍語ö世" * 60
    ids, ends = settled(SettlingTokenizer(tokenizer_json(kind)), list(text))
    plain = Tokenizer.from_str(tokenizer_json(kind))
    whole = plain.encode(text[: ends[-1]], add_special_tokens=False).ids
    if kind not in (
        "words",
        "word piece",
        "unigram",
    ):  # these know nothing of the text, and say so in one token
        assert ids == whole


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", [" " * 4000, "\x00" * 4000, "x" + "\u200b" * 4000, "\n" * 4000])
def test_text_without_tokens_is_passed_over(kind: str, text: str) -> None:
    growing = SettlingTokenizer(tokenizer_json(kind)).begin()
    for char in text:
        growing.push(char)
        assert len(growing.pending) <= MAX_PENDING_CHARS


@pytest.mark.parametrize(
    "option", [{"ignore_merges": True}, {"end_of_word_suffix": "</w>"}, {"fuse_unk": True}]
)
def test_a_tokenizer_without_merges_may_still_look_at_what_follows(option: dict) -> None:
    vocabulary = {"<unk>": 0, **{name: i for i, name in enumerate(["a", "b", "ab", "a</w>", "b</w>"], 1)}}
    plain = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", **option))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    text = "ab ?? ab a "
    ids, _ = settled(SettlingTokenizer(plain.to_str()), list(text))
    assert ids
    assert ids == plain.encode(text).ids[: len(ids)]
